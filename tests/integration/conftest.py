"""Real services for integration tests: the embedded ones, or those of DATABASE_URL and REDIS_URL.

    services      object with database_url and redis_url, the same for the whole run
    database_url  a fresh, migrated database for this test
    module_database_url  the same for all tests of a module
    redis_url     an empty Redis database for this test
    command_line  commands that are called in this process use both
    filled        a database with jobs that went well and badly, the same for the whole run

`services` starts Postgres and Redis in a home of their own, once, when the first test asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis

from marco_search import locations, migrations
from marco_search.local import ServiceUrls, local_services
from marco_search.local.programs import purge
from marco_search.settings import Settings
from marco_search.settings import load as load_settings
from marco_search.store.db import Database
from tests.databases import scratch_database
from tests.integration.audited import Audited, audited
from tests.integration.toys import open_database
from tests.memory import data_folder

# With a REDIS_URL of the developer's the tests use this database of it, and only if it is empty.
_FOREIGN_REDIS_DATABASE = 15


@pytest.fixture(scope="session")
def services_home() -> Iterator[Path]:
    """A home for embedded services, deleted at the end."""
    with data_folder() as folder:
        yield folder / "home"
        if (folder / "home").exists():
            purge(folder / "home")


@pytest.fixture(scope="session")
def services(services_home: Path) -> Iterator[ServiceUrls]:
    """Postgres and Redis that answer."""
    settings = Settings()
    if settings.database_url and settings.redis_url:
        yield ServiceUrls(locations.database_url(settings), locations.redis_url(settings))
        return
    with local_services(services_home) as urls:
        _spare_the_disk(urls)
        database = locations.database_url(settings) if settings.database_url else urls.database_url
        broker = locations.redis_url(settings) if settings.redis_url else urls.redis_url
        yield ServiceUrls(database, broker)


@pytest.fixture(scope="session")
def template_database(services: ServiceUrls) -> Iterator[str]:
    """URL of a database that was migrated once and that the tests copy."""
    with scratch_database(services.database_url) as url:
        migrations.upgrade(url)
        yield url


@pytest.fixture
def database_url(services: ServiceUrls, template_database: str) -> Iterator[str]:
    """URL of a fresh database with the current schema, dropped after the test."""
    with scratch_database(services.database_url, template=template_database) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(services: ServiceUrls, template_database: str) -> Iterator[str]:
    """URL of a fresh database with the current schema, dropped after the module's tests."""
    with scratch_database(services.database_url, template=template_database) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A pool on a database of the test's own."""
    with open_database(database_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def filled(services: ServiceUrls, template_database: str) -> Iterator[Audited]:
    """A database to read from: see tests/integration/audited.py."""
    with (
        scratch_database(services.database_url, template=template_database) as url,
        audited(url) as opened,
    ):
        yield opened


@pytest.fixture
def redis_url(services: ServiceUrls) -> Iterator[str]:
    """URL of an empty Redis database, emptied again after the test."""
    url = services.redis_url
    if os.environ.get("REDIS_URL"):
        url = with_path(url, str(_FOREIGN_REDIS_DATABASE))
    with redis.Redis.from_url(url) as client:
        if os.environ.get("REDIS_URL") and client.dbsize():
            pytest.fail(f"REDIS_URL: tests use database {_FOREIGN_REDIS_DATABASE}: empty it first")
        client.flushdb()
        yield url
        client.flushdb()


def _spare_the_disk(urls: ServiceUrls) -> None:
    """Leave flushing to the system: making and dropping databases is several times faster.

    A killed Postgres still loses nothing; only a power cut could, and the data is thrown away.
    """
    with psycopg.connect(urls.database_url, autocommit=True) as session:
        session.execute("ALTER SYSTEM SET fsync = off")
        session.execute("SELECT pg_reload_conf()")


def with_path(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture
def command_line(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Commands that are called in this process use the database and broker of this test."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()
