"""The session of a command that needs Postgres or Redis.

The schema of an embedded database is brought up to date; that of a real one is left to
`marco migrate`, which its owner runs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from marco_search import settings as settings_module
from marco_search.cli import options, output
from marco_search.errors import DatabaseUnavailable, SchemaMismatch
from marco_search.export.tables import Filter
from marco_search.local import local_services, read_urls
from marco_search.local.programs import has_data
from marco_search.locations import database_url, redis_url
from marco_search.settings import Settings
from marco_search.store import postgres
from marco_search.store.db import Database
from marco_search.store.reads import queries

if TYPE_CHECKING:
    from producer import Producer


class _Notices(logging.Handler):
    """Shows a producer's warnings, from any of its threads, as notices of the command."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._command = click.get_current_context()

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message."""
        with self._command.scope(cleanup=False):
            output.notice(record.getMessage())


@dataclass(frozen=True, slots=True)
class Session:
    """Settings, and the database they point to."""

    settings: Settings
    database: Database
    tenant: str | None  #: whose jobs are visible; None: all tenants'
    _stack: ExitStack

    def producer(self, tenant: str | None = None, *, notices: bool = True) -> Producer:
        """A producer, of one tenant or of all, that is closed with the session.

        Without `notices` it does not report that jobs make no progress.
        """
        from producer import Producer

        logging.getLogger("producer").handlers = [_Notices() if notices else logging.NullHandler()]
        return self._stack.enter_context(Producer(settings=self.settings, tenant=tenant))

    def find(self, words: Sequence[str], *, everywhere: bool = False) -> list[UUID]:
        """The jobs that these words or --batch name, of the tenant or `everywhere`.

        "-" reads the words. Raises what `queries.find_jobs` does.
        """
        batch_id = options.chosen_batch(words)
        words = sys.stdin.read().split() if list(words) == ["-"] else words
        with self.database.transaction() as conn:
            whose = None if everywhere else self.tenant
            if batch_id is not None:
                return queries.jobs_of_batch(conn, batch_id, whose)
            return queries.find_jobs(conn, words, whose)

    def chosen(self, jobs: Sequence[str], **conditions: Any) -> Filter:
        """What `options.which_jobs`, and options named as other fields of Filter, choose."""
        for name, value in conditions.items():
            if value == "":  # an unset variable of a script must not mean all
                raise click.UsageError(f"--{name} is empty: give a value, or leave it out.")
        return Filter(jobs=self.find(jobs), tenant=self.tenant, **conditions)


def judge_addresses(settings: Settings, *, redis: bool = True) -> None:
    """Raises InvalidSettings for an address of a service that can't be one; connects to none."""
    if settings.database_url is not None:
        postgres.parameters(database_url(settings))
    if redis and settings.redis_url is not None:
        redis_url(settings)


@contextmanager
def session(
    *, creates: bool = False, migrates: bool = False, needs_redis: bool = True
) -> Iterator[Session]:
    """Reachable services inside the block.

    `creates` says whether the command makes sense where nothing was ever stored: then an
    embedded database is created if there is none. `migrates` brings the schema of a real database
    up to date as well. Without `needs_redis` a real database is enough, and no Redis is started.
    Raises DatabaseUnavailable if nothing is stored, and what the database raises.

    The options of `options.tenants`, else MARCO_TENANT, determine whose jobs are visible.
    """
    settings = settings_module.load()
    tenant = options.chosen_tenant(settings.tenant)
    judge_addresses(settings, redis=needs_redis)
    with ExitStack() as stack:
        if settings.database_url is None or (needs_redis and settings.redis_url is None):
            home = settings.home.absolute()
            known = read_urls(home) is not None or has_data(home)
            made = settings.database_url is None and not known
            if made and not creates:
                raise DatabaseUnavailable(
                    f"nothing is stored under {home}: go to the folder where jobs were "
                    "submitted, or set MARCO_HOME or DATABASE_URL (`marco demo` gives you "
                    "something to look at)"
                )
            stack.enter_context(local_services(settings.home))
            if made:
                output.notice(f"made a new database in {home}")
        url = database_url(settings)
        database = stack.enter_context(closing(Database(url, application="marco")))
        if migrates or settings.database_url is None:
            try:
                with database.transaction():
                    pass
            except SchemaMismatch:
                from marco_search.migrations import upgrade

                upgrade(url)
        yield Session(settings, database, tenant, stack)
