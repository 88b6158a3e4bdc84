"""The worked example of CONTRIBUTING.md: a new kind of job, in two files.

1. marco_search/kinds/NEW.py: its job model with the field that is its subject, its prompt, how
   its answer is read, and which answers are the same.
2. marco_search/kinds/__init__.py: the kind in KINDS.

tests/integration/test_new_kind.py runs one through the queue.
"""

from __future__ import annotations

import json
from datetime import date

import pytest
from pydantic import Field

from marco_search.cli.job_input import job_from_options, own_options
from marco_search.engine import solve
from marco_search.errors import InvalidJob
from marco_search.jobs import SearchOptions, payload_hash
from marco_search.kinds import (
    KINDS,
    checked,
    job_from_json_line,
    own_fields,
    parse_job,
    subject_fields,
)
from marco_search.kinds.base import ExtractedAnswer
from tests.new_kind import Sorting, SortingJob
from tests.toy import ToyRuntime


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "sorting", Sorting())


def test_it_is_parsed_like_any_other() -> None:
    job = parse_job({"kind": "sorting", "items": "pear, fig", "options": {"rollouts": 4}})
    assert isinstance(job, SortingJob)
    assert (job.subject, job.order) == ("pear, fig", "up")
    assert job_from_json_line(job.model_dump_json(), 1) == job
    assert payload_hash(job) == payload_hash(SortingJob(items="pear, fig", options=job.options))
    with pytest.raises(InvalidJob, match="items: empty or blank"):
        parse_job({"kind": "sorting", "items": " "})
    with pytest.raises(InvalidJob, match="did you mean 'sorting'"):
        parse_job({"kind": "sortin", "items": "a"})


def test_help_and_sql_follow_from_it() -> None:
    assert own_fields(KINDS["sorting"]) == {"order": "up or down"}
    assert "items" in subject_fields()


class Labelled(SortingJob):
    """With fields named as others' and fields that are not text."""

    style: str | None = Field(None, description="How")
    seed: int = 0
    labels: list[str] = Field([], description="Which")
    count: int | None = None


class Labelling(Sorting):
    model = Labelled


def test_options_of_the_command_line_follow_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "sorting", Labelling())
    options = own_options()
    assert options["style"].endswith("(translation). How (sorting).")
    assert "seed" not in options, "an option of every search"
    values = {"kind": "sorting", "style": "7", "labels": '["好", "坏"]', "count": "3"}
    job = job_from_options("pear, fig", values)
    assert isinstance(job, Labelled)
    assert (job.style, job.labels, job.count) == ("7", ["好", "坏"], 3)
    with pytest.raises(InvalidJob, match="labels: must be a list, not 'fig'"):
        job_from_options("pear, fig", values | {"labels": "fig"})


def test_it_is_asked_searched_and_read_its_own_way() -> None:
    job = SortingJob(items="pear, fig", order="down", expected="pear ,fig")
    (turn,) = KINDS["sorting"].messages(job)
    assert turn.content == "Sort down: pear, fig"
    result = solve(job, runtime=ToyRuntime(answers=("pear, fig", "pear,fig")))
    assert (result.kind, result.correct) == ("sorting", True)
    assert result.answer is not None
    assert (result.answer.normalised, result.answer.share) == ("pear,fig", 1.0)


class Careless(Sorting):
    """Reads answers as JSON, and does not think of what a model may write."""

    def read(self, output: str) -> ExtractedAnswer | None:
        found = json.loads(output)
        return ExtractedAnswer(found["key"], found["key"])


def test_an_answer_that_can_t_be_read_costs_its_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "sorting", Careless())
    odd = ("[1", "[]", '{"key": 5}', '{"key": ["fig"]}')
    good = r'{"key": "fig\u0000\ud800"}'
    job = SortingJob(items="fig", expected="fig", options=SearchOptions(rollouts=30, seed=2))
    result = solve(job, runtime=ToyRuntime(answers=(*odd, good)))
    assert [answer.text for answer in result.answers] == ["fig\ufffd\ufffd"]
    assert result.shortfalls.unanswered > 0
    assert result.correct is None, "what is expected is no JSON either"


def test_a_prompt_that_postgres_can_t_store_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sorting, "user_turn", lambda self, job: "a\x00")
    with pytest.raises(InvalidJob, match="prompt: holds a NUL"):
        solve(SortingJob(items="fig"), runtime=ToyRuntime())


class Dated(SortingJob):
    """A job with a field that JSON has no type for."""

    day: date


def test_a_field_that_is_not_read_back_from_json_is_refused_before_it_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = Sorting()
    monkeypatch.setitem(KINDS, "sorting", kind)
    monkeypatch.setattr(kind, "model", Dated)
    with pytest.raises(InvalidJob, match=r"day: .*valid date"):
        checked(Dated(items="fig", day=date(2030, 1, 31)))
