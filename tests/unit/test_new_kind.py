"""The worked example of CONTRIBUTING.md: a new kind of job, in two files.

1. marco_search/kinds/NEW.py: its job model with the field that is its subject, its prompt, how
   its answer is read, and which answers are the same.
2. marco_search/kinds/__init__.py: the kind in KINDS.

tests/integration/test_new_kind.py runs one through the queue.
"""

from __future__ import annotations

import pytest

from marco_search.engine import solve
from marco_search.errors import InvalidJob
from marco_search.jobs import payload_hash
from marco_search.kinds import KINDS, job_from_json_line, own_fields, parse_job, subject_fields
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


def test_it_is_asked_searched_and_read_its_own_way() -> None:
    job = SortingJob(items="pear, fig", order="down", expected="pear ,fig")
    (turn,) = KINDS["sorting"].messages(job)
    assert turn.content == "Sort down: pear, fig"
    result = solve(job, runtime=ToyRuntime(answers=("pear, fig", "pear,fig")))
    assert (result.kind, result.correct) == ("sorting", True)
    assert result.answer is not None
    assert (result.answer.normalised, result.answer.share) == ("pear,fig", 1.0)
