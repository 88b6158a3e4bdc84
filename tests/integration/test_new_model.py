"""Jobs that were begun on a model which workers do not have any more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from marco_search import doctor
from marco_search import settings as settings_module
from marco_search.cli.main import main
from marco_search.errors import RuntimeUnavailable
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.queue import leases, scheduling
from marco_search.store.queue.states import JobState
from marco_search.store.reads import queries
from marco_search.store.reads.queries import JobStatus
from marco_search.store.seal.verification import verify_all
from producer import Producer
from tests.integration.toys import (
    WORKER,
    FineTuned,
    Interrupted,
    alone,
    environment,
    insert,
    question,
    run_job,
    runner,
    settings_for,
    tick,
)
from tests.toy import ToyRuntime

Marco = Callable[..., Any]


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    return settings_for(database_url, redis_url, max_attempts=2)


@pytest.fixture
def marco(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Marco]:
    """Runs a command with --json; what it printed, or its error."""
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    settings_module.load.cache_clear()

    def run(*words: str, code: int = 0) -> Any:
        assert main([*words, "--json"]) == code
        output = capsys.readouterr()
        return json.loads(output.err if code else output.out)

    yield run
    settings_module.load.cache_clear()


def status(database: Database, job_id: UUID) -> JobStatus:
    with database.transaction() as conn:
        return queries.statuses(conn, [job_id])[0]


def begun(settings: Settings, database: Database, **more: Any) -> UUID:
    """A job that a worker with the toy model began and that is queued again, due."""
    (stored,) = insert(database, question(**more))

    def fail() -> None:
        raise RuntimeUnavailable("gone")

    with alone(database, stored.id):
        runner(settings, database, Interrupted(1, fail)).run_next()
    with database.transaction() as conn:
        conn.execute(
            "UPDATE jobs SET run_after = now(), published_at = now(), failures = 0 WHERE id = %s",
            [stored.id],
        )
    return stored.id


def event_details(database: Database, job_id: UUID, event: str) -> list[dict[str, Any]]:
    with database.transaction() as conn:
        rows = conn.execute(
            "SELECT detail FROM audit_log WHERE job_id = %s AND event = %s", [job_id, event]
        )
        return [row[0] for row in rows]


def test_a_begun_job_waits_for_its_model_and_holds_up_no_other(
    settings: Settings, database: Database, database_url: str, redis_url: str
) -> None:
    old = begun(settings, database)
    (fresh,) = insert(database, question("What is 2 + 2?"))
    newer = runner(settings, database, FineTuned())
    newer.run_next()
    assert status(database, old).attempts == 1
    newer.run_next()
    assert status(database, fresh.id).state is JobState.SUCCEEDED
    newer.run_next()
    waits = status(database, old)
    assert (waits.state, waits.attempts, waits.error) == (JobState.QUEUED, 1, "gone")
    with database.transaction() as conn:
        (missing,) = queries.missing_models(conn, tenant="default")
        conn.execute("UPDATE jobs SET published_at = now() - interval '1 hour'")
    assert (missing.model, missing.jobs) == ("toy-marco-o1", 1)
    found = doctor.models(settings)
    assert not found.ok
    assert "1 job waits for a worker with model toy-marco-o1" in found.detail
    # No message is sent for it again and again, and nothing logged.
    assert tick(database_url, redis_url) == 0
    assert event_details(database, old, "published") == []

    # A worker that has the model takes it up where it was.
    runner(settings, database, ToyRuntime()).run_next()
    done = status(database, old)
    assert (done.state, done.attempts, done.rollouts) == (JobState.SUCCEEDED, 2, 12)
    assert doctor.models(settings).ok


def test_others_of_its_model_are_published_when_a_worker_has_it_again(
    settings: Settings, database: Database, database_url: str, redis_url: str
) -> None:
    jobs = [begun(settings, database, options={"seed": i}) for i in range(3)]
    newer = runner(settings, database, FineTuned())
    for _ in jobs:
        newer.run_next()
    with database.transaction() as conn:
        assert [m.jobs for m in queries.missing_models(conn)] == [3]
        begun_on = scheduling.key("toy-marco-o1", "0")
        assert leases.claim_next(conn, WORKER, lease_s=60, begun_on=begun_on) is None
    runner(settings, database, ToyRuntime()).run_next()
    assert tick(database_url, redis_url) == 2
    with database.transaction() as conn:
        assert queries.missing_models(conn) == []


def test_waiting_and_failed_jobs_start_over_as_new_jobs(
    settings: Settings, database: Database, database_url: str, redis_url: str
) -> None:
    about = {"metadata": {"ticket": "T-1"}, "priority": "high", "expected": "2"}
    old = begun(settings, database, **about)
    failed = begun(settings, database, options={"seed": 1})
    ended = insert(database, question("What is 3 + 3?"))[0].id

    def fail() -> None:
        raise KeyError("a bug")

    with alone(database, failed):
        runner(settings, database, Interrupted(0, fail)).run_next()
    assert status(database, failed).state is JobState.FAILED
    newer = runner(settings, database, FineTuned())
    newer.run_next()
    newer.run_next()
    with Producer(database_url, redis_url) as producer:
        assert producer.waiting_for_model() == [old]
        renewed = producer.restart([old, failed, ended])
        assert set(renewed) == {old, failed}
        assert producer.restart([old, failed, ended]) == {}
        assert producer.dead_letters() == producer.waiting_for_model() == []
    newer.run_next()
    newer.run_next()
    tick(database_url, redis_url)
    for before, after in renewed.items():
        kept, new = status(database, before), status(database, after)
        assert (kept.state, new.state) == (JobState.CANCELLED, JobState.SUCCEEDED)
        assert kept.rounds > 0 and kept.answer is not None
        (detail,) = event_details(database, before, "cancel_requested")
        assert detail == {"restarted_as": str(after)}
        assert event_details(database, after, "submitted") == [{"restart_of": str(before)}]
    new = status(database, renewed[old])
    assert (new.priority, new.expected, new.model) == (0, "2", "toy-marco-o1")
    with database.transaction() as conn:
        same = conn.execute(
            "SELECT count(DISTINCT payload_hash) FROM jobs WHERE id = ANY (%s)",
            [[old, renewed[old]]],
        ).fetchone()
    assert same == (1,)
    assert verify_all(database_url).ok


def test_the_commands_say_it_and_start_them_over(
    settings: Settings,
    database: Database,
    marco: Marco,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = [begun(settings, database, options={"seed": i}) for i in range(2)]
    newer = runner(settings, database, FineTuned())
    for _ in jobs:
        newer.run_next()
    assert main(["status"]) == 0
    output = capsys.readouterr().out
    assert "2 jobs wait for a worker with model toy-marco-o1 (revision " in output
    assert "marco requeue --restart" in output
    assert marco("status")["missing_models"][0]["jobs"] == 2
    marco("requeue", str(jobs[0]), code=2)
    (one,) = marco("requeue", "--restart", str(jobs[0]))["restarted"].items()
    marco("requeue", "--restart", str(jobs[0]), code=3)  # cancelled now
    assert one[0] == str(jobs[0])
    assert list(marco("requeue", "--restart", "--all")["restarted"]) == [str(jobs[1])]
    assert marco("status")["missing_models"] == []
    assert marco("dead", "requeue", "--restart", "--all")["restarted"] == {}


def test_two_revisions_compare_on_the_questions_of_both(
    settings: Settings, database: Database, database_url: str, marco: Marco
) -> None:
    for runtime in (ToyRuntime(("1", "2")), FineTuned(("2",))):
        asked = [question(f"Question {i}?", expected="2", options={"seed": i}) for i in range(4)]
        for stored in insert(database, *asked, question("Other?", tenant="other")):
            run_job(runner(settings, database, runtime), database, stored.id)
    found = marco("model", "compare", "0000", "toy-marco-o1 1111", "--changed", "1")
    assert (found["old"]["method"], found["new"]["method"]) == (None, "sft")
    assert (found["new"]["parent_revision"], found["new"]["manifests"]) == ("0" * 64, ["d" * 64])
    (compared,) = found["compared"]
    assert (compared["questions"], compared["new"]["accuracy"]) == (4, 1.0)
    wrong = round(4 * (1 - compared["old"]["accuracy"]))
    assert (compared["changed"], compared["accuracy"]["only_first"]) == (wrong, wrong)
    assert [pair["new_answer"] for pair in found["changed"]] == ["2"] * min(1, wrong)
    assert (
        marco("model", "compare", "0000", "1111", "--all-tenants")["compared"][0]["questions"] == 5
    )
    marco("model", "compare", "toy-marco-o1", "1111", code=2)  # both are called so

    # What it was trained on is part of the proof.
    assert verify_all(database_url).ok
    with psycopg.connect(database_url) as conn:
        conn.execute("SET session_replication_role = replica")
        conn.execute("UPDATE attempts SET training = NULL WHERE job_id = %s", [stored.id])
    assert "attempts" in str(verify_all(database_url).findings)


def test_a_revision_that_says_nothing_is_compared_too(
    settings: Settings, database: Database, marco: Marco
) -> None:
    for runtime in (ToyRuntime(silent=1.0), FineTuned(("2",))):
        asked = [question(f"Question {i}?", expected="2") for i in range(2)]
        for stored in insert(database, *asked):
            run_job(runner(settings, database, runtime), database, stored.id)
    (compared,) = marco("model", "compare", "0000", "1111")["compared"]
    assert compared["old"]["tokens"] == 0
    assert compared["tokens"]["ratio"] == compared["new"]["tokens"]


AS_IN_0_1_0 = """
    DROP SCHEMA audit CASCADE;
    DROP INDEX ix_jobs_begun, ix_jobs_parked, ix_jobs_to_cancel, ix_jobs_line, ix_jobs_unfinished;
    ALTER TABLE jobs DROP begun_on, DROP parked_at, ADD CONSTRAINT ck_jobs_kind CHECK (true);
    CREATE INDEX ix_jobs_line ON jobs (tenant, turn_at);
    DROP TABLE chain_lock;
    ALTER TABLE chain DROP format;
    ALTER TABLE attempts DROP training;
    ALTER TABLE rollouts DROP scores, DROP forced;
    DROP TABLE dataset_samples, datasets;
    DROP TABLE file_parts, files, api_keys, webhook_deliveries, webhooks, redactions, batch_lines;
    DROP TABLE batches;
    ALTER TABLE jobs DROP salt, DROP redacted_at, DROP batch_line, DROP custom_id;
    CREATE INDEX ix_jobs_batch_id ON jobs (batch_id) WHERE batch_id IS NOT NULL;
    UPDATE alembic_version SET version_num = '0005'
"""


def test_a_database_of_the_version_before_knows_what_its_jobs_were_begun_on(
    settings: Settings, database: Database, database_url: str
) -> None:
    from marco_search import migrations

    old = begun(settings, database)
    database.close()
    with psycopg.connect(database_url) as conn:
        conn.execute(AS_IN_0_1_0)
    migrations.upgrade(database_url)
    runner(settings, database, FineTuned()).run_next()
    assert status(database, old).attempts == 1
    runner(settings, database, ToyRuntime()).run_next()
    assert status(database, old).state is JobState.SUCCEEDED
