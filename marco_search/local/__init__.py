"""Postgres and Redis for a machine that has neither: started, supervised and stopped here."""

from marco_search.local.account import purge
from marco_search.local.control import ServiceUrls, down, local_services, up
from marco_search.local.state import is_running
from marco_search.local.state import read as read_state

__all__ = ["ServiceUrls", "down", "is_running", "local_services", "purge", "read_state", "up"]
