"""`marco replay JOB`: a stored job generated again, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.rows import class_row

from marco_search.cli import reading
from marco_search.cli.failures import DOES_NOT_FIT, OTHER_ENGINE
from marco_search.cli.output import console
from marco_search.cli.session import Session, session
from marco_search.engine import SearchPlan
from marco_search.errors import InvalidJob
from marco_search.kinds import parse_job
from marco_search.replay import Replayed, replay
from marco_search.runtime import open_runtime
from marco_search.runtime.base import RuntimeInfo
from marco_search.search.tree import Node, Rollout
from marco_search.store import views
from marco_search.store.db import Conn
from marco_search.store.trail import trail


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """What a replay needs to know of a job, and what it should tell about it."""

    id: UUID
    state: str
    payload: dict[str, Any]
    plan: dict[str, Any] | None
    stop_reason: str | None
    nodes: int
    attempts: int  # that began a search
    engines: list[str]  # name and version, of each attempt in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A replay and the job it is of."""

    job: StoredJob
    info: RuntimeInfo
    replayed: Replayed

    @property
    def fits(self) -> bool:
        """The same text; with the embedded engine the same bits."""
        exact = self.info.name == "embedded"
        return self.replayed.same_bits if exact else self._same_text

    @property
    def same_engine(self) -> bool:
        """Every attempt ran on the engine that this one has, its arithmetic included."""
        return set(self.job.engines) == {self.engine}

    @property
    def exit_code(self) -> int:
        """0 if it fits; else whether the trail or only the machine is another."""
        if self.fits:
            return 0
        return DOES_NOT_FIT if self.same_engine else OTHER_ENGINE

    @property
    def _same_text(self) -> bool:
        done = self.replayed
        return done.same_text and done.same_answers + done.read_otherwise == done.rollouts

    def lines(self) -> Iterator[str]:
        """For a reader."""
        done, job = self.replayed, self.job
        yield f"Job {job.id}, {job.state}: {self.engine} generates it again."
        yield from self._notes()
        if done.same_bits:
            counts = f"rounds: {done.rounds}, rollouts: {done.rollouts}, nodes: {done.nodes}"
            yield f"The same tree, bit for bit ({counts})."
            return
        yield (
            f"{done.same_rollouts} of {done.rollouts} rollouts have the same text,"
            f" {done.same_answers} the same answer; {done.same_nodes} of {done.nodes} nodes are"
            " the same bit for bit."
        )
        if done.greatest_gap:
            yield f"Log-probs of the same tokens differ by {done.greatest_gap:.3g} at most."
        yield f"First difference: {done.first}"
        if not self.fits and not self.same_engine:
            yield (
                "This is no proof of a change: another engine, or another kind of processor, may"
                " round otherwise. Replay it on what it was searched on."
            )

    def _notes(self) -> Iterator[str]:
        if self.job.attempts > 1:
            yield f"{self.job.attempts} attempts searched it; what one left, the next went on with."
        if self.replayed.failed:
            yield f"Branches that had failed and are taken as failed: {self.replayed.failed}."
        if self.replayed.read_otherwise:
            yield (
                "Same text, another answer read in it by this version:"
                f" {self.replayed.read_otherwise}. `marco verify` checks the answers stored."
            )
        if self.job.state in ("queued", "running"):
            yield "It has not ended: these are its rounds so far."
        elif self.job.stop_reason in ("cancelled", "seconds", "deadline", None):
            yield f"It ended early ({self.job.stop_reason or 'an error'}): so far it came."
        for engine in dict.fromkeys(self.job.engines):
            if engine != self.engine:
                yield f"Searched on {engine}, this is {self.engine}: its last digits may differ."

    @property
    def engine(self) -> str:
        """Name and version of the engine now."""
        return f"{self.info.name} {self.info.version}"

    def to_json(self) -> dict[str, Any]:
        """For a script."""
        done = self.replayed
        return {
            "job_id": str(self.job.id),
            "state": self.job.state,
            "fits": self.fits,
            "same_bits": done.same_bits,
            "same_text": done.same_text,
            "engine": self.engine,
            "engine_then": self.job.engines[0],
            "same_engine": self.same_engine,
            "attempts": self.job.attempts,
            "rounds": done.rounds,
            "rollouts": done.rollouts,
            "same_rollouts": done.same_rollouts,
            "same_answers": done.same_answers,
            "read_otherwise": done.read_otherwise,
            "failed_rollouts": done.failed,
            "nodes": done.nodes,
            "same_nodes": done.same_nodes,
            "greatest_gap": done.greatest_gap,
            "first_difference": None if done.first is None else str(done.first),
        }


def stored_tree(
    here: Session, word: str
) -> tuple[StoredJob, SearchPlan, list[Node], list[Rollout]]:
    """The job that `word` names and its records below the root.

    Raises JobNotFound, and InvalidJob if there is no tree.
    """
    with here.database.transaction() as conn:
        job_id = reading.find_job(conn, word, here.tenant)
        job = _stored(conn, job_id)
        nodes, rollouts = trail.load(conn, job_id, schema=views.SCHEMA)
    if job.plan is not None and not rollouts and job.nodes:
        raise InvalidJob("JOB", "its tree is in an archive: there is nothing to compare with")
    if job.plan is None or not rollouts:
        raise InvalidJob("JOB", f"{job.state}, and no round of it is kept: nothing to replay")
    return job, SearchPlan.from_json(job.plan), nodes, rollouts


def replay_job(word: str, *, quiet: bool) -> Outcome:
    """Generate the job that `word` names again. Raises JobNotFound, InvalidJob, ModelRefused."""
    with session(needs_redis=False) as here:
        job, plan, nodes, rollouts = stored_tree(here, word)
        with (
            console(stderr=True).status("generating", spinner="line") as status,
            closing(open_runtime(here.settings)) as runtime,
        ):
            replayed = replay(
                parse_job(job.payload),
                plan,
                nodes,
                rollouts,
                runtime,
                stop_reason=job.stop_reason if job.state == "succeeded" else None,
                on_round=lambda n, of: None if quiet else status.update(f"round {n} of {of}"),
            )
            return Outcome(job=job, info=runtime.info, replayed=replayed)


def _stored(conn: Conn, job_id: UUID) -> StoredJob:
    with conn.cursor(row_factory=class_row(StoredJob)) as cursor:
        job = cursor.execute(
            """
            SELECT j.job_id AS id, j.state, j.payload, j.stop_reason, j.nodes,
                a.attempts, a.engines,
                CASE WHEN j.config IS NOT NULL THEN jsonb_build_object('config', j.config,
                    'prompt', a.prompt, 'model', j.model, 'revision', j.revision) END AS plan
            FROM audit.jobs AS j CROSS JOIN LATERAL (
                SELECT count(*) AS attempts,
                    (array_agg(b.prompt ORDER BY b.generation))[1] AS prompt,
                    array_agg(b.runtime || ' ' || b.runtime_version
                        ORDER BY b.generation) AS engines
                FROM audit.attempts AS b WHERE b.job_id = j.job_id AND b.config IS NOT NULL
            ) AS a WHERE j.job_id = %s
            """,
            [job_id],
        ).fetchone()
    assert job is not None, "it was found"
    return job
