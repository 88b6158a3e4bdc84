"""A database as an auditor finds it: jobs of two tenants that went well, badly, or not at all.

Everything is written by the runner itself, over the toy model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID, uuid4

from marco_search.errors import ModelRefused, RuntimeUnavailable
from marco_search.export.tables import Filter
from marco_search.jobs import Job
from marco_search.kinds import OpenEndedJob
from marco_search.learning import build
from marco_search.learning.traces import Rules
from marco_search.store.db import Database
from marco_search.store.queue import batches, jobs
from marco_search.store.queue.batches import BatchLine
from tests.integration.toys import (
    FineTuned,
    Interrupted,
    open_database,
    question,
    run_job,
    runner,
    settings_for,
)
from tests.toy import ToyRuntime


class Killed(BaseException):
    """As a kill: nothing is written after it."""


@dataclass(frozen=True, slots=True)
class Audited:
    """The database, its URL, and its jobs by what happened to them."""

    url: str
    database: Database
    batch: UUID
    ids: dict[str, UUID]


@contextmanager
def audited(url: str) -> Iterator[Audited]:
    """Fills the new database at `url`."""
    with open_database(url) as database:
        yield Audited(url, database, *_fill(url, database))


def _fill(url: str, database: Database) -> tuple[UUID, dict[str, UUID]]:
    settings = settings_for(url, "redis://nobody", max_attempts=2)
    batch, ids = uuid4(), dict[str, UUID]()
    with database.transaction() as conn:
        batches.begin(conn, tenant="default", source="questions.jsonl", batch_id=batch)
        wrong = {"custom_id": "q99", "field": "question", "reason": "is missing"}
        batches.refuse(conn, batch, [BatchLine(line=99, job_id=None, **wrong)])
        batches.take(conn, batch, before=0, lines=99, complete=True)

    def submit(name: str, job: Job, *, batch_id: UUID | None = batch) -> UUID:
        with database.transaction() as conn:
            (stored,) = jobs.insert(
                conn, [job], tenant="default", batch_id=batch_id, lines=[len(ids) + 1]
            )
        ids[name] = stored.id
        return stored.id

    def run(name: str, runtime: ToyRuntime, worker: str = "one") -> None:
        with suppress(Killed):
            run_job(runner(settings, database, runtime, worker), database, ids[name])

    def again() -> None:
        with database.transaction() as conn:
            conn.execute(
                "UPDATE jobs SET run_after = now(), lease_expires_at ="
                " CASE WHEN state = 'running' THEN now() - interval '1 s' END"
                " WHERE state IN ('queued', 'running')"
            )

    for seed in range(6):
        options = {"seed": seed, "rollouts": 24, "reflection": "branch"}
        submit(f"plain{seed}", question(f"Question {seed}?", expected="1", options=options))
        run(f"plain{seed}", ToyRuntime())
    submit(
        "patchy", question("Half of it fails?", expected="1", options={"rollouts": 24, "seed": 1})
    )
    run("patchy", ToyRuntime(failing=0.3))
    options = {"seed": 9, "rollouts": 24, "reflection": "branch"}
    submit("newer", question("Question 1?", expected="1", options=options))
    run("newer", FineTuned(("5", "1")), "two")
    submit("resumed", question("Went on elsewhere?", options={"rollouts": 24}))
    run("resumed", Interrupted(1, _raising(Killed())), "one")
    again()
    run("resumed", ToyRuntime(), "two")
    submit("retried", question("Once more?"))
    run("retried", Interrupted(1, _raising(RuntimeUnavailable("overloaded"))))
    again()
    run("retried", ToyRuntime())
    submit("refused", question("Not with this model?"))
    run("refused", Interrupted(0, _raising(ModelRefused("another model"))))
    submit("dead", question("Never?"))
    for _ in range(2):
        run("dead", Interrupted(0, _raising(RuntimeUnavailable("nobody there"))))
        again()
    submit("cancelled", question("Not any more?"))
    with database.transaction() as conn:
        jobs.cancel(conn, [ids["cancelled"]])
    submit("queued", question("Later?"))
    for i in range(3):
        about: dict[str, Any] = {
            "tenant": "acme",
            "options": {"rollouts": 8, "strategy": "vote", "seed": i},
        }
        submit(f"acme{i}", OpenEndedJob(prompt="A name for a bakery?", **about), batch_id=None)
        run(f"acme{i}", ToyRuntime(("Crumbs", "Loaf")))
    rules = Rules(least_share=0, reflection="kept")
    for tenant in ("acme", "default"):
        with TemporaryDirectory() as folder:
            chosen = Filter(tenant=tenant)
            build.from_traces(database, Path(folder) / "names", chosen, rules, rules={})
    return batch, ids


def _raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act
