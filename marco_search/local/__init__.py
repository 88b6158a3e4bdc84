"""Postgres and Redis for a machine that has neither: started, watched and stopped by us."""

from marco_search.local.control import ServiceUrls, Status, down, local_services, status, up

__all__ = ["ServiceUrls", "Status", "down", "local_services", "status", "up"]
