"""Whatever is done to jobs, in whatever order: Postgres ends up as a naive model in Python does."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine as StateMachine
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from marco_search import engine
from marco_search.errors import IdempotencyConflict, LeaseLost, QuotaExceeded
from marco_search.search.budgets import StopReason
from marco_search.search.tree import Tree
from marco_search.store.db import Conn, Database
from marco_search.store.queue import batches, leases, scheduling
from marco_search.store.queue.leases import Claim
from marco_search.store.queue.states import JobState
from marco_search.store.seal.verification import check_jobs
from marco_search.store.trail import trail
from producer import EVERYONE, Producer
from tests.integration.toys import WORKER, open_database, question, rounds_of, settings_for
from tests.toy import PROMPT, ToyRuntime
from worker import finish
from worker.scheduler import Scheduler

SEARCH, ROUNDS = rounds_of()
INFO = ToyRuntime().info
ERROR = {"type": "X", "message": "wrong", "retryable": False}
LEVELS = {"high": 0, "normal": 3, "low": 6}
DEADLY = 2  # workers lost in one round
SHOWN = ("state", "attempts", "failures", "losses", "rounds", "begun_on")
SEEN = f"""SELECT id, {", ".join(SHOWN)}, paused_at IS NOT NULL, published_at IS NOT NULL,
    cancel_requested_at IS NOT NULL, (SELECT count(*) FROM chain WHERE job_id = jobs.id)
    FROM jobs WHERE id = ANY (%s)"""  # noqa: S608


@dataclass(kw_only=True, eq=False)
class Job:
    tenant: str
    request: tuple[str | None, str, str]  # key, text, priority
    turn: tuple[int, int]
    id: UUID = field(default_factory=uuid4)  # replaced once it is stored
    batch: UUID | None = None
    line: int = 0
    state: str = "queued"
    paused: bool = False
    published: bool = True
    asked: bool = False  # to end
    begun_on: str = ""
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    rounds: int = 0
    due: bool = True
    late: bool = False  # its deadline has passed
    left: bool = False  # its lease has run out
    lost: int = 0  # workers since it got on
    ends: int = 0

    @property
    def open(self) -> bool:
        return self.state in ("queued", "running")

    def end(self, state: str) -> None:
        self.state, self.ends, self.left = state, self.ends + 1, False

    def cancel(self) -> None:
        self.asked = self.asked or self.open
        if self.state == "queued" and not self.rounds:
            self.end("cancelled")

    def give_back(self, **changes: Any) -> None:
        vars(self).update(changes, state="queued", left=False)
        if self.asked:
            self.cancel()


picks = st.integers(0, 99)
letters = st.sampled_from("ab")
requests = st.tuples(
    st.sampled_from([None, "k"]), st.sampled_from("12"), st.sampled_from([*LEVELS])
)
some_jobs = precondition(lambda self: self.jobs)
examples = count()


class Machine(StateMachine):
    database: Database
    producer: Producer
    scheduler: Scheduler

    def __init__(self) -> None:
        super().__init__()
        self.number = next(examples)  # each has tenants of its own
        self.clock = count()
        self.jobs: list[Job] = []
        self.claims: list[tuple[Job, Claim]] = []
        self.batches: dict[UUID, dict[int, Job]] = {}  # the lines that name a known job
        self.finished: set[UUID] = set()
        self.pauses: set[str] = set()
        self.quotas: dict[str, int] = {}

    def call(self, step: Any, *given: Any) -> Any:
        return self.database.call(step, *given)

    def execute(self, query: str, *given: Any) -> None:
        self.call(lambda conn: conn.execute(query.encode(), given))

    def runs(self, job: Job) -> bool:
        return not job.paused and not self.pauses & {"", job.tenant}

    @rule(letter=letters, several=st.lists(requests, min_size=1, max_size=3), batch=st.booleans())
    def submit(self, letter: str, several: list[Any], batch: bool) -> None:
        tenant, several = f"{letter}{self.number}", several if batch else several[:1]
        known = {j.request[0]: j for j in self.jobs if j.tenant == tenant}
        made, named = list[Job](), list[Job]()
        for request in several:
            if request[0] is None or request[0] not in known:
                turn = LEVELS[request[2]], next(self.clock)
                known[request[0]] = Job(tenant=tenant, request=request, turn=turn)
                made.append(known[request[0]])
            named.append(known[request[0]])
        queued = [
            j for j in self.jobs if j.tenant == tenant and j.state == "queued" and not j.paused
        ]
        given = [
            question(text, idempotency_key=key, priority=priority, tenant=tenant)
            for key, text, priority in several
        ]
        if [job.request for job in named] != several:
            with pytest.raises(IdempotencyConflict):
                self.producer.submit_many(given)
            return
        if made and len(queued) + len(made) > self.quotas.get(tenant, 99):
            with pytest.raises(QuotaExceeded):
                self.producer.submit_many(given)
            return
        handles = self.producer.submit_many(given) if batch else [self.producer.submit(given[0])]
        batch_id = handles[0].batch_id
        lines = self.batches.setdefault(batch_id, {}) if batch_id else {}
        for line, (job, handle) in enumerate(zip(named, handles, strict=True), start=1):
            if handle.created:
                job.id, job.batch, job.line = handle.id, batch_id, line
            else:
                lines[line] = job
            assert (handle.id, handle.state) == (job.id, job.state)
        self.jobs += made

    @rule(letter=letters, most=st.integers(0, 4))
    def set_quota(self, letter: str, most: int) -> None:
        self.quotas[f"{letter}{self.number}"] = most
        self.producer.set_quota(most, f"{letter}{self.number}")

    @rule(model=st.sampled_from("xy"))
    def claim(self, model: str) -> None:
        begun_on = scheduling.key(model, INFO.revision)
        running = Counter(j.tenant for j in self.jobs if j.state == "running")
        first = min(
            (j for j in self.jobs if j.state == "queued" and j.published and j.due
             and j.begun_on in ("", begun_on) and self.runs(j)),
            key=lambda j: (running[j.tenant], j.turn), default=None,
        )  # fmt: skip

        def take(conn: Conn) -> Claim | None:
            found = leases.claim_next(conn, WORKER, lease_s=600, begun_on=begun_on)
            if found and (found.cancel_requested or found.expired):
                finish.finish_unsearched(conn, found, WORKER)
            elif found:
                found = replace(found, plan=found.plan or plan_on(model).to_json())
                leases.begin(conn, found.lease, WORKER, INFO, found.plan)
            return found

        found = self.call(take)
        assert (found and found.job_id) == (first and first.id)
        if first and (first.asked or first.late):
            first.attempts += 1
            first.end("cancelled" if first.asked else "expired")
        elif first:
            first.attempts += 1
            first.state, first.begun_on = "running", first.begun_on or begun_on
            self.claims.append((first, found))

    @precondition(lambda self: self.claims)
    @rule(
        pick=picks,
        how=st.sampled_from(["round", "retry", "release", "succeeded", "failed", "dead"]),
    )
    def write(self, pick: int, how: str) -> None:
        job, claim = self.claims[pick % len(self.claims)]
        lease, published = claim.lease, pick % 2 == 0
        if how == "round" and job.rounds == len(ROUNDS):
            return

        def step(conn: Conn) -> None:
            if how == "round":
                assert trail.append(conn, lease, ROUNDS[job.rounds], seconds=1) == job.asked
            elif how == "retry":
                leases.retry(conn, lease, delay_s=600, error=ERROR)
            elif how == "release":
                leases.release(conn, lease, why="", seconds=1, published=published, aging_s=600)
            elif how == "succeeded":
                request, plan = engine.stored(claim.payload, claim.plan)
                assert plan
                tree = Tree.restore(*trail.load(conn, job.id))
                search = engine.restore_search(request, plan, tree)
                search.stop(StopReason.ROLLOUTS)
                finish.finish(
                    conn, claim, request, engine.FinishedSearch(plan=plan, search=search, seconds=1)
                )
            else:
                leases.end(conn, lease, JobState(how), error=ERROR)

        mine = claim.generation == job.attempts
        if not mine or job.state != "running":
            if not (how == "succeeded" and mine and not job.open):  # that is taken for its own end
                with pytest.raises(LeaseLost):
                    self.call(step)
            return
        self.call(step)
        if how == "round":
            job.rounds, job.lost, job.left = job.rounds + 1, 0, False
        elif how == "retry":
            job.give_back(failures=job.failures + 1, due=False, published=False)
        elif how == "release":
            job.give_back(turn=(job.turn[0], next(self.clock)), published=published)
        else:
            job.end(how)

    @some_jobs
    @rule(pick=picks, what=st.sampled_from(["cancel", "pause", "resume"]))
    def order(self, pick: int, what: str) -> None:
        job = self.jobs[pick % len(self.jobs)]
        if what == "cancel":
            job.cancel()
        elif job.open and job.paused != (what == "pause"):
            job.paused, job.published = what == "pause", job.due
        assert getattr(self.producer, what)(job.id) == job.state

    @rule(letter=st.sampled_from(["a", "b", ""]), paused=st.booleans())
    def pause_tenant(self, letter: str, paused: bool) -> None:
        tenant = letter and f"{letter}{self.number}"
        whose = tenant or EVERYONE
        if paused:
            self.pauses.add(tenant)
            self.producer.pause_tenant(whose)
            return
        self.pauses.discard(tenant)
        self.producer.resume_tenant(whose)
        for job in self.jobs:
            job.published = job.published or (tenant in ("", job.tenant) and self.is_due(job))

    def is_due(self, job: Job) -> bool:
        return job.state == "queued" and job.due and self.runs(job)

    @some_jobs
    @rule(pick=picks, what=st.sampled_from(["run_after", "expires_at", "lease_expires_at"]))
    def pass_time(self, pick: int, what: str) -> None:
        job = self.jobs[pick % len(self.jobs)]
        if job.open and (what != "lease_expires_at" or job.state == "running"):
            self.execute(f"UPDATE jobs SET {what} = now() WHERE id = %s", job.id)  # noqa: S608
            setattr(job, {"run_after": "due", "expires_at": "late"}.get(what, "left"), True)

    @rule()
    def tick(self) -> None:
        """What a scheduler does."""
        self.scheduler.tick()
        ending = any(j.state == "queued" and (j.late or j.asked) for j in self.jobs)
        for batch_id, known in self.batches.items():
            own = (j for j in self.jobs if j.batch == batch_id)
            if not any(j.open for j in (*own, *known.values())):
                self.finished.add(batch_id)
        lost = [j for j in self.jobs if j.left]
        due = any(self.is_due(j) and not j.published for j in self.jobs)
        for job in lost:
            asked = job.asked
            job.lost += 1
            job.give_back(losses=job.losses + 1, due=True, published=False)
            if job.lost == DEADLY and not asked:
                job.end("dead")
        for job in self.jobs:
            if ending and job.state == "queued" and (job.late or job.asked):
                job.attempts += job.rounds > 0
                job.end("cancelled" if job.asked else "expired")
        for job in self.jobs:
            job.published = job.published or ((due or bool(lost)) and self.is_due(job))

    @some_jobs
    @rule(several=st.lists(picks, min_size=1, max_size=3), restart=st.booleans())
    def requeue(self, several: list[int], restart: bool) -> None:
        some = {self.jobs[i % len(self.jobs)] for i in several}
        ordered = sorted(some, key=lambda job: job.id)
        dead = [job for job in ordered if job.state in ("failed", "dead")]
        for job in dead:
            vars(job).update(
                state="queued", failures=0, losses=0, lost=0, asked=False, paused=False, late=False,
                due=True, published=True, turn=(job.turn[0], next(self.clock)),
            )  # fmt: skip
            self.finished -= {i for i, known in self.batches.items() if job in known.values()}
            self.finished -= {job.batch}
        if not restart:
            assert set(self.producer.requeue([j.id for j in some])) == {j.id for j in dead}
            return
        copies = self.producer.restart([j.id for j in some])
        begun = [j for j in ordered if j.state == "queued" and not j.asked and j.attempts]
        assert copies.keys() == {j.id for j in begun}
        self.copy(begun, [copies[j.id] for j in begun])
        for job in begun:
            job.cancel()

    @precondition(lambda self: self.batches)
    @rule(pick=picks)
    def restart_batch(self, pick: int) -> None:
        batch_id = list(self.batches)[pick % len(self.batches)]
        own = {j.line: j for j in self.jobs if j.batch == batch_id}  # the latest of each line
        old = [job for _, job in sorted(own.items()) if job.state in batches.AGAIN]
        assert self.producer.restart_batch(batch_id) == len(old)
        with self.database.transaction() as conn:
            found = {x.line: x.job_id for x in batches.lines(conn, batch_id, after=0, last=9)}
        self.copy(old, [found[job.line] for job in old])

    def copy(self, old: list[Job], ids: list[Any]) -> None:
        for job, job_id in zip(old, ids, strict=True):
            self.jobs.append(
                Job(id=job_id, tenant=job.tenant, request=(None, *job.request[1:]),
                    turn=(job.turn[0], next(self.clock)), batch=job.batch, line=job.line)
            )  # fmt: skip
            self.finished -= {job.batch}

    @invariant()
    def agrees(self) -> None:
        with self.database.transaction() as conn:
            rows = conn.execute(SEEN.encode(), [[job.id for job in self.jobs]])
            found = {job_id: seen for job_id, *seen in rows}
            for batch_id, known in self.batches.items():
                lines = {j.line: j for j in self.jobs if j.batch == batch_id} | known
                stored = batches.find(conn, batch_id)
                assert stored.states == Counter(job.state for job in lines.values())
                assert (stored.finished_at is not None) == (batch_id in self.finished)
        for job in self.jobs:
            flags = job.paused, job.published, job.asked, job.ends
            assert found[job.id] == [*(getattr(job, name) for name in SHOWN), *flags]

    def teardown(self) -> None:
        with self.database.transaction() as conn:
            for report in check_jobs(conn, [job.id for job in self.jobs]):
                assert report.findings == ()
            conn.execute(  # so that no later example sees them
                "UPDATE jobs SET state = 'cancelled', finished_at = now(), lease_owner = NULL,"
                " lease_expires_at = NULL WHERE finished_at IS NULL"
            )
            conn.execute("UPDATE tenants SET paused_at = NULL")


def plan_on(model: str) -> engine.SearchPlan:
    return engine.SearchPlan(
        config=SEARCH.config, prompt=PROMPT, model=model, revision=INFO.revision
    )


def test_the_queue_does_what_the_model_does(module_database_url: str, redis_url: str) -> None:
    given = settings_for(module_database_url, redis_url, quarantine_after=DEADLY, lease_s=1)
    with (
        open_database(module_database_url) as Machine.database,
        Producer(settings=given) as Machine.producer,
        closing(Scheduler(given, WORKER)) as Machine.scheduler,
    ):
        once = settings(max_examples=12, stateful_step_count=25, deadline=None, derandomize=True)
        run_state_machine_as_test(Machine, settings=once)
