"""What the trail and results have of a profile, and of rollouts that did not end well."""

from __future__ import annotations

from uuid import UUID

import pytest

from marco_search import profiles
from marco_search.audit.findings import Status
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.reads import job_record, queries
from marco_search.store.seal.verification import verify_job
from tests.integration.toys import insert, question, run_job, runner, settings_for
from tests.toy import ToyRuntime


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    return settings_for(database_url, redis_url)


def searched(settings: Settings, database: Database, **options: object) -> UUID:
    (job,) = insert(database, question(options=options))
    run_job(runner(settings, database, ToyRuntime()), database, job.id)
    return job.id


def test_profile_and_hash_are_in_plan_attempt_and_result(
    settings: Settings, database: Database
) -> None:
    job = searched(settings, database, overrides={"top_p": 0.5})
    label = profiles.override(profiles.load("marco-o1"), {"top_p": 0.5}).label
    with database.transaction() as conn:
        plan, attempt = conn.execute(
            "SELECT j.plan #>> '{config,profile}', a.config ->> 'profile' FROM jobs AS j"
            " JOIN attempts AS a ON a.job_id = j.id WHERE j.id = %s",
            [job],
        ).fetchone() or (None, None)
        (result,) = queries.results(conn, [job])
        config = queries.config(conn, job)
    assert plan == attempt == result.profile == config.profile == label
    assert (config.top_p, config.turn.end_of_thought) == (0.5, "</Thought>")
    assert verify_job(database, job).status is Status.VALID


def test_a_result_counts_what_the_tree_shows(settings: Settings, database: Database) -> None:
    job = searched(settings, database, max_new_tokens=9)
    with database.transaction() as conn:
        (result,) = queries.results(conn, [job])
        record = job_record.read(conn, job)
    found = result.shortfalls
    lengths = [r for r in record.rollouts if r.finish == "length"]
    assert 0 < found.cut_off == len(lengths)
    assert found.cut_off_at == max(r.generated_tokens for r in lengths)
    assert result.shortfall == record.shortfall
    assert result.max_new_tokens == 9


def test_a_result_names_the_strategy_that_auto_was(settings: Settings, database: Database) -> None:
    job = searched(settings, database, strategy="auto")
    with database.transaction() as conn:
        (result,) = queries.results(conn, [job])
        asked = queries.statuses(conn, [job])[0].strategy
    assert (asked, result.strategy) == ("auto", "tree")
