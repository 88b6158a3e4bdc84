"""A kind of job that the database has never seen: submitted, searched by a worker, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marco_search.kinds import KINDS
from marco_search.store.reads import queries
from tests.integration.toys import insert, marco, open_database, question, runner, settings_for
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


def test_a_prompt_that_can_t_be_stored_fails_its_job_and_holds_up_no_other(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "sorting", Sorting())
    monkeypatch.setattr(Sorting, "user_turn", lambda self, job: f"{job.items}\x00")
    with open_database(database_url) as database:
        stored = insert(database, SortingJob(items="fig"), question())
        worker = runner(settings_for(database_url, "redis://127.0.0.1:1/0"), database, ToyRuntime())
        worker.run_next()
        worker.run_next()
        with database.transaction() as conn:
            lines = queries.statuses(conn, [job.id for job in stored])
    assert [line.state for line in lines] == ["failed", "succeeded"]
    assert lines[0].subject == "", "the views do not know its field yet"


def test_a_job_of_a_kind_that_is_not_installed_is_in_nobody_s_way(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(KINDS, "sorting", Sorting())
    monkeypatch.setattr(
        Sorting, "merge", lambda self, answers: ["1" if key == "2" else key for key, _ in answers]
    )
    with open_database(database_url) as database:
        stored = insert(database, SortingJob(items="pear, fig"), question())
        worker = runner(settings_for(database_url, "redis://127.0.0.1:1/0"), database, ToyRuntime())
        worker.run_next()
        worker.run_next()
    # The command knows the kinds of the product only.
    sorting = str(stored[0].id)
    for words in (
        ("status",), ("results",), ("show", sorting), ("results", sorting), ("verify", sorting),
        ("show", sorting, "--format", "html"), ("export", str(tmp_path / "files")),
    ):  # fmt: skip
        done = marco(database_url, *words)
        assert (done.returncode, done.stderr) == (0, ""), (words, done.stdout)
    again = marco(database_url, "replay", sorting)
    assert (again.returncode, "unknown kind 'sorting'" in again.stderr) == (2, True)
    made = marco(database_url, "dataset", "from-traces", str(tmp_path / "set"), "--json")
    assert json.loads(made.stdout)["counts"]["dropped"]["version"] == 1
