"""Postgres and Redis for a machine that has neither: started, supervised and stopped here."""

from marco_search.local.control import (
    ServiceUrls,
    down,
    is_running,
    local_services,
    read_urls,
    up,
)
from marco_search.local.programs import has_data, purge

__all__ = [
    "ServiceUrls",
    "down",
    "has_data",
    "is_running",
    "local_services",
    "purge",
    "read_urls",
    "up",
]
