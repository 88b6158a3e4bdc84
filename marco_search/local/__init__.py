"""Postgres and Redis for a machine that has neither: started, supervised and stopped here."""

from marco_search.local.account import purge
from marco_search.local.control import ServiceUrls, Status, down, local_services, status, up
from marco_search.local.state import read as read_state

__all__ = ["ServiceUrls", "Status", "down", "local_services", "purge", "read_state", "status", "up"]
