"""A stored search is verified under the reward that led it, whichever it was."""

from __future__ import annotations

from uuid import UUID

import pytest

from marco_search.search.rewards import EXTERNAL, REWARDS
from marco_search.store.db import Database
from marco_search.store.seal.verification import verify_job
from tests.integration.toys import insert, open_database, question, runner, settings_for
from tests.toy import ToyRuntime


def searched(database: Database, url: str, reward: str) -> UUID:
    options = {"reward": reward, "reflection": "branch"}
    (stored,) = insert(database, question(options=options))
    settings = settings_for(url, "redis://127.0.0.1:1/0")
    runner(settings, database, ToyRuntime(failing=0.1)).run_next()
    return stored.id


def test_every_reward_is_computed_again(database_url: str) -> None:
    with open_database(database_url) as database:
        for reward in REWARDS.keys() - EXTERNAL:
            report = verify_job(database, searched(database, database_url, reward))
            assert report.findings == (), reward


def test_a_value_that_does_not_follow_from_the_tokens_is_found(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_database(database_url) as database:
        job_id = searched(database, database_url, "minimum")
        monkeypatch.setitem(REWARDS, "minimum", lambda rollout: max(rollout.c))
        found = verify_job(database, job_id).findings
    assert {f.what for f in found} == {"value"}
