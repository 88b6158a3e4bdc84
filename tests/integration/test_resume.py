"""Interrupted at random moments of its writing to Postgres, a job ends as if it never was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marco_search.settings import Settings
from marco_search.store.db import Conn, Database
from marco_search.store.trail import trail
from tests.integration.toys import Interrupted, insert, question, runner, schedule
from tests.integration.toys import settings_for as settings_of

MOMENTS = ("generating", "copied, not committed", "committed")


class Killed(BaseException):
    """As kill -9: nothing of the attempt goes on after it."""


def die() -> None:
    """The attempt ends here."""
    raise Killed


@pytest.fixture
def given_settings(database_url: str) -> Settings:
    return settings_of(
        database_url, "redis://127.0.0.1:1/0", max_attempts=100, quarantine_after=100
    )


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**31 - 1),
    strategy=st.sampled_from(("step", "tree")),
    kills=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(MOMENTS)), max_size=5),
)
def test_the_tree_is_that_of_an_uninterrupted_search(
    database: Database,
    given_settings: Settings,
    seed: int,
    strategy: str,
    kills: list[tuple[int, str]],
) -> None:
    asked = question(options={"seed": seed, "rollouts": 24, "strategy": strategy})
    whole, cut = insert(database, asked, asked)
    runner(given_settings, database, Interrupted(-1, die)).run_next()
    rounds_asked = 0
    with pytest.MonkeyPatch.context() as patch:
        for i, (before, moment) in enumerate([*kills, (-1, "")]):
            patch.undo()
            runtime = Interrupted(before if moment == "generating" else -1, die)
            if moment in MOMENTS[1:]:
                patch.setattr(trail, "append", _dying(before, commit=moment == "committed"))
            kept = _rounds(database, cut.id)
            try:
                runner(given_settings, database, runtime, f"worker {i}").run_next()
            except Killed:
                _let_the_lease_run_out(database)
            rounds_asked += runtime.rounds
            # Every round that was asked for is new, or was lost before it was committed.
            assert runtime.rounds - (_rounds(database, cut.id) - kept) in (0, 1)
    with database.transaction() as conn:
        assert trail.load(conn, cut.id)[0] == trail.load(conn, whole.id)[0]
        assert trail.load(conn, cut.id)[1] == trail.load(conn, whole.id)[1]
        answers = conn.execute(
            "SELECT count(DISTINCT (rank, key, votes, rollout_ids)), count(*) FROM answers"
            " WHERE job_id IN (%s, %s)", [whole.id, cut.id],
        ).fetchone()  # fmt: skip
    assert answers is not None
    assert answers[0] * 2 == answers[1]


def _dying(before: int, *, commit: bool) -> Any:
    append, calls = trail.append, [0]

    def dying(conn: Conn, *values: Any, **named: Any) -> Any:
        done = append(conn, *values, **named)
        calls[0] += 1
        if calls[0] == before + 1:
            if commit:
                conn.commit()
            raise Killed
        return done

    return dying


def _rounds(database: Database, job_id: Any) -> int:
    with database.transaction() as conn:
        row = conn.execute("SELECT rounds FROM jobs WHERE id = %s", [job_id]).fetchone()
    assert row is not None
    return int(row[0])


def _let_the_lease_run_out(database: Database) -> None:
    with database.transaction() as conn:
        conn.execute(
            "UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'"
        )
    schedule(database)
