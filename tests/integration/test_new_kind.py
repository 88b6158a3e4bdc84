"""A kind of job that the database has never seen: submitted, searched by a worker, read back."""

from __future__ import annotations

import pytest

from marco_search.kinds import KINDS
from marco_search.store.reads import queries
from tests.integration.toys import insert, open_database, runner, settings_for
from tests.new_kind import Sorting, SortingJob
from tests.toy import ToyRuntime


def test_a_new_kind_needs_no_migration(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "sorting", Sorting())
    job = SortingJob(items="pear, fig", options={"rollouts": 4, "seed": 3})  # type: ignore[arg-type]
    with open_database(database_url) as database:
        (stored,) = insert(database, job)
        settings = settings_for(database_url, "redis://127.0.0.1:1/0")
        runner(settings, database, ToyRuntime(answers=("fig, pear",))).run_next()
        with database.transaction() as conn:
            (result,) = queries.results(conn, [stored.id])
    assert (result.kind, result.state) == ("sorting", "succeeded")
    assert result.answer is not None
    assert result.answer.normalised == "fig,pear"
