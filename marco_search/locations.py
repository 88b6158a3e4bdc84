"""Where Postgres and Redis are: real servers from the environment, else the embedded ones.

Everything that connects gets the address here, so both kinds are treated alike.
"""

from __future__ import annotations

from marco_search import broker
from marco_search.errors import (
    BrokerUnavailable,
    DatabaseUnavailable,
    InvalidSettings,
    ServiceError,
)
from marco_search.local import ServiceUrls, is_running, read_urls
from marco_search.settings import Settings

_POSTGRES_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


def database_url(settings: Settings) -> str:
    """Postgres' URL as psycopg accepts it: postgresql://USER:PASSWORD@HOST:PORT/NAME.

    DATABASE_URL if set, else the embedded server under MARCO_HOME. Raises InvalidSettings for
    a URL of another kind, DatabaseUnavailable when nothing is set and nothing runs.
    """
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value().strip()
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in _POSTGRES_SCHEMES:
            # The value is left out on purpose: it may hold a password.
            raise InvalidSettings("DATABASE_URL: must look like postgresql://... or postgres://...")
        return f"postgresql://{rest}"
    return _embedded(settings, "DATABASE_URL", DatabaseUnavailable).database_url


def redis_url(settings: Settings) -> str:
    """Redis' URL: redis://:PASSWORD@HOST:PORT/NUMBER.

    REDIS_URL if set, else the embedded server under MARCO_HOME. Raises InvalidSettings for a
    URL that can't be used, BrokerUnavailable when nothing is set and nothing runs.
    """
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value().strip()
        broker.parse_address(url)
        return url
    return _embedded(settings, "REDIS_URL", BrokerUnavailable).redis_url


def _embedded(settings: Settings, variable: str, error: type[ServiceError]) -> ServiceUrls:
    home = settings.home.absolute()
    urls = read_urls(home)
    if urls is None or not is_running(home):
        raise error(
            f"{variable} is not set and no embedded services run under {home}: "
            f"run `marco up`, or set {variable}"
        )
    return urls
