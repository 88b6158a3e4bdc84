"""A worker's search on an SGLang server that fails, and what of it is kept and told the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from marco_search.settings import Settings
from marco_search.store import claims, jobs, queries, reclaim
from marco_search.store.connect import Database
from marco_search.store.leases import Worker
from tests.integration.toys import insert, open_database, question, runner, settings_for
from tests.unit.runtime.sglang_server import Handler, Server, runtime, serving, until

OTHER = Worker(name="other", host="h", pid=2)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with open_database(database_url) as opened:
        yield opened


@pytest.fixture
def settings(database_url: str) -> Settings:
    # Redis is not asked.
    return settings_for(database_url, "redis://127.0.0.1:1/0", heartbeat_s=0.05, lease_s=20)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def sql(database: Database, statement: str, *values: Any) -> list[Any]:
    with database.transaction() as conn:
        return conn.execute(statement.encode(), values).fetchall()


def test_the_trail_says_which_branches_failed_and_why(
    settings: Settings, database: Database, server: Server
) -> None:
    def some(handler: Handler, body: dict[str, Any]) -> bool:
        seed = body["sampling_params"].get("sampling_seed")
        if seed is None or seed % 3:
            return False
        handler.send({"error": {"message": "out of luck"}}, 400)
        return True

    server.act = some
    (stored,) = insert(database, question(options={"rollouts": 16}))
    with runtime(server) as opened:
        runner(settings, database, opened).run(stored.id)
    rows = sql(database, "SELECT finish, seed, error FROM rollouts WHERE job_id = %s", stored.id)
    assert len(rows) == 16
    for finish, seed, error in rows:
        assert (finish == "failed") == (seed % 3 == 0) == ("out of luck" in (error or ""))
    assert 0 < sum(seed % 3 == 0 for _, seed, _ in rows) < 16
    with database.transaction() as conn:
        (outcome,) = queries.results(conn, [stored.id])
    assert outcome.state == "succeeded"
    assert outcome.answer is not None


@pytest.mark.parametrize("why", ["cancelled", "lease lost"])
def test_a_search_that_is_to_end_ends_on_the_server_as_well(
    settings: Settings, database: Database, server: Server, why: str
) -> None:
    """In the middle of a round: the server hears which requests nobody waits for."""

    def hang(handler: Handler, body: dict[str, Any]) -> bool:
        if body["sampling_params"]["max_new_tokens"] == 0:
            return False
        server.released.wait(60)
        return True

    server.act = hang
    (stored,) = insert(database, question())
    with runtime(server) as opened:
        thread = threading.Thread(target=runner(settings, database, opened).run, args=[stored.id])
        thread.start()
        until(lambda: len(server.calls) >= 4)
        with database.transaction() as conn:
            if why == "cancelled":
                jobs.cancel(conn, stored.id)
            else:
                conn.execute("UPDATE jobs SET lease_expires_at = now() - interval '1 s'")
                reclaim.reclaim(conn, quarantine_after=2)
                assert claims.claim(conn, stored.id, OTHER, lease_s=60)
        thread.join(30)
        assert not thread.is_alive()
        until(lambda: set(server.aborted) >= {call["rid"] for call in server.calls})
    assert sql(database, "SELECT count(*) FROM rollouts") == [(0,)]
    (state,) = sql(database, "SELECT state FROM jobs")
    assert state[0] == ("cancelled" if why == "cancelled" else "running")
