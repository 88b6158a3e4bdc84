"""What an idle fleet asks of Postgres: statements a second, counted in its log."""

from __future__ import annotations

import contextlib
import re
import time

import psycopg

from ops.bench.queueing import instant
from ops.bench.queueing.place import Place, running

SECONDS = 10.0
WORKERS = 2


def statements_per_s(here: Place) -> dict[str, float]:
    """With two workers that have nothing to do, each of which may sweep."""
    with contextlib.ExitStack() as stack:
        for _ in range(WORKERS):
            stack.enter_context(running(here, instant.command(1)))
        session = stack.enter_context(psycopg.connect(here.urls.database_url, autocommit=True))
        session.execute("ALTER SYSTEM SET log_statement = 'all'")
        session.execute("SELECT pg_reload_conf()")
        time.sleep(3.0)  # for the log to begin, and the workers to have made their connections
        before, began = _logged(here), time.perf_counter()
        time.sleep(SECONDS)  # the measurement
        count, seconds = _logged(here) - before, time.perf_counter() - began
        session.execute("ALTER SYSTEM RESET log_statement")
        session.execute("SELECT pg_reload_conf()")
    return {"idle_workers": WORKERS, "idle_statements_per_s": count / seconds}


# A statement and the lines it goes on in, which begin with a tab.
_STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]+): ([^\n]*(?:\n\t[^\n]*)*)")


def statements(log: str) -> int:
    """Statements that look at something: not BEGIN and COMMIT around them, nor empty ones."""
    texts = _STATEMENT.findall(log)
    return sum(text.strip() not in ("", "BEGIN", "COMMIT", "ROLLBACK") for text in texts)


def _logged(here: Place) -> int:
    return statements(here.log.read_text(errors="replace"))
