"""Runs: resumable, concurrent, and blind to the labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from marco_search.errors import InvalidDataSet, RuntimeUnavailable
from marco_search.evaluation.data_sets import Problem, from_row
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.report import require_few_failed, row
from marco_search.evaluation.run import Progress, Recipe, run
from marco_search.evaluation.traces import read
from marco_search.jobs import SearchOptions
from marco_search.runtime.base import RuntimeInfo
from marco_search.search.branches import Branch, Expansion, Finish, Message
from tests.toy import ToyRuntime

SECRET = "98765431"


class Spy(ToyRuntime):
    """Keeps all that a runtime gets to see."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen: list[str] = []
        self.searches = 0

    def render(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None) -> str:
        self.searches += 1
        return super().render(messages, options)

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        self.seen.append(repr(expansions))
        return super().branch(expansions)


def problems(n: int = 6, answer: str = "1") -> list[Problem]:
    return [from_row({"question": f"Problem {i}?", "answer": answer}, "row") for i in range(n)]


def recipe(**options: Any) -> Recipe:
    given: dict[str, Any] = {"strategy": "vote", "rollouts": 4}
    return Recipe(options=SearchOptions(**given | options))


def test_labels_never_reach_a_search(tmp_path: Path) -> None:
    spy = Spy()
    file = tmp_path / "run.jsonl"
    run(problems(answer=SECRET), recipe(strategy="step"), spy, file)
    assert spy.seen
    assert not any(SECRET in text for text in spy.seen)
    assert SECRET not in file.read_text()


def test_labels_change_nothing(tmp_path: Path) -> None:
    def lines(label: str) -> list[dict[str, Any]]:
        found = run(problems(answer=label), recipe(), ToyRuntime(), tmp_path / f"{label}.jsonl")
        return [asdict(t) | {"seconds": 0} for t in found]

    assert lines("1") == lines("2")


def test_progress_has_the_accuracy_so_far(tmp_path: Path) -> None:
    reports: list[Progress] = []
    run(problems(), recipe(), ToyRuntime(["1"]), tmp_path / "run.jsonl", on_progress=reports.append)
    assert reports[0].done == 0 and reports[0].seconds_left is None
    last = reports[-1]
    assert (last.done, last.total, last.graded, last.right) == (6, 6, 6, 6)
    assert last.interval == pytest.approx((0.61, 1.0), abs=0.01)
    assert last.tokens > 0 and last.seconds_left == 0


def test_a_run_does_only_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    first = run(problems(4), recipe(), ToyRuntime(), file)
    reports: list[Progress] = []
    spy = Spy()
    both = run(problems(6), recipe(), spy, file, on_progress=reports.append)
    assert (reports[0].done, reports[-1].resumed) == (4, 4)
    assert both[:4] == first and len(read(file)) == 6
    assert not any(f"Problem {i}?" in text for text in spy.seen for i in range(4))


def test_another_configuration_starts_over_in_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    run(problems(), recipe(), ToyRuntime(), file)
    run(problems(), recipe(seed=1), ToyRuntime(), file)
    assert len(read(file)) == 12 and len({t.run for t in read(file)}) == 2


def test_a_line_cut_off_by_an_interruption_is_done_again(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    whole = run(problems(), recipe(), ToyRuntime(), file)
    cut = file.read_bytes()[:-20] + "答".encode()[:1]
    file.write_bytes(cut)
    assert len(read(file)) == 5 and file.read_bytes() == cut  # reading leaves the file as it is
    again = run(problems(), recipe(), ToyRuntime(), file)
    assert [t.rollouts for t in again] == [t.rollouts for t in whole]
    assert len(read(file)) == 6


def test_what_was_done_before_a_failure_is_kept(tmp_path: Path) -> None:
    class Dying(ToyRuntime):
        calls = 0

        def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
            self.calls += 1
            if self.calls > 3:
                raise RuntimeUnavailable("gone")
            return super().branch(expansions)

    file = tmp_path / "run.jsonl"
    with pytest.raises(RuntimeUnavailable):
        run(problems(), recipe(), Dying(), file, threads=1)
    assert len(read(file)) == 3
    assert len(run(problems(), recipe(), ToyRuntime(), file)) == 6


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text(json.dumps({"question": "q"}) + "\n")
    with pytest.raises(InvalidDataSet, match="line 1: not a trace"):
        run(problems(), recipe(), ToyRuntime(), file)


def test_changes_reach_the_search(tmp_path: Path) -> None:
    changed = recipe(rollouts=4, early_stop=False, overrides={"parallel": 1})
    found = run(problems(2), changed, ToyRuntime(), tmp_path / "run.jsonl")
    assert all([r.round for r in t.rollouts] == [1, 2, 3, 4] for t in found)


def test_each_problem_has_a_seed_of_its_own(tmp_path: Path) -> None:
    seeds = [recipe(seed=7).job(p).options.seed for p in problems()]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [recipe(seed=7).job(p).options.seed for p in problems()]
    assert not set(seeds) & {recipe(seed=8).job(p).options.seed for p in problems()}


def test_trees_are_kept_also_of_what_was_searched_without(tmp_path: Path) -> None:
    file, spy = tmp_path / "run.jsonl", Spy()
    without = run(problems(), recipe(), ToyRuntime(), file)
    found = run(problems(), replace(recipe(), keep_tokens=True), ToyRuntime(), file)
    assert not any(t.scores for t in without) and all(t.scores for t in found)
    for trees in (True, False):
        again = run(problems(), replace(recipe(), keep_tokens=trees), spy, file)
        assert again == found and not spy.seen


@pytest.mark.parametrize("change", ["system prompt", "template", "revision"])
def test_another_prompt_or_model_reuses_no_trace(tmp_path: Path, change: str) -> None:
    class Otherwise(Spy):
        def render(
            self, messages: Sequence[Message], options: Mapping[str, Any] | None = None
        ) -> str:
            return ("Now:\n" if change == "template" else "") + super().render(messages, options)

        @property
        def info(self) -> RuntimeInfo:
            usual = super().info
            return replace(usual, revision="another") if change == "revision" else usual

    file, spy = tmp_path / "run.jsonl", Otherwise()
    run(problems(), recipe(), ToyRuntime(), file)
    changed = problems()
    if change == "system prompt":
        changed = [
            replace(p, job=p.job.model_copy(update={"system_prompt": "Hm."})) for p in changed
        ]
    run(changed, recipe(), spy, file)
    assert len(read(file)) == 12 and spy.seen


class Failing(ToyRuntime):
    """Fails one branch in four."""

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        return [
            Branch(branch_id=b.branch_id, finish=Finish.FAILED, error="TimeoutError: 60 s")
            if b.branch_id % 4 == 1
            else b
            for b in super().branch(expansions)
        ]


def test_failed_rollouts_are_counted_and_searched_again(tmp_path: Path) -> None:
    file, reports = tmp_path / "run.jsonl", list[Progress]()
    found = run(problems(), recipe(), Failing(), file, on_progress=reports.append)
    assert (reports[-1].failed, reports[-1].rollouts) == (6, 24)
    assert row("vote", found, Grader(problems())).to_json()["failed"] == 0.25
    with pytest.raises(RuntimeUnavailable, match=r"6 rollouts failed, 25\.0 % .* 5 % allowed"):
        require_few_failed(found, 0.05)
    require_few_failed(found, 0.25)
    again = run(problems(), recipe(), ToyRuntime(), file)
    require_few_failed(again, 0)
    assert len(read(file)) == 12
    spy = Spy()
    assert run(problems(), recipe(), spy, file) == again and not spy.seen
