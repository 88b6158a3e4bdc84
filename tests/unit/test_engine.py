"""What a search does when branches fail, and when paths grow too long for the model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from marco_search import metrics
from marco_search.engine import Journal, make_plan, run_search, solve
from marco_search.errors import PromptTooLong, RuntimeUnavailable
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.search.branches import Branch, Expansion, Finish
from marco_search.search.budgets import StopReason
from tests.toy import ToyRuntime

OPTIONS = SearchOptions(strategy="step", rollouts=16, early_stop=False, max_new_tokens=6, seed=7)
JOB = ReasoningJob(question="2 + 2?", options=OPTIONS)


class ShortOfRoom(ToyRuntime):
    """Takes prefixes of at most `room` characters, as an engine takes so many tokens."""

    room = 10_000

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        found = []
        for expansion in expansions:
            if len(expansion.prefix) <= self.room:
                found += super().branch([expansion])
                continue
            found += [
                Branch(branch_id=r.branch_id, finish=Finish.FAILED, error="PromptTooLong: full")
                for r in expansion.branches
            ]
        return found


def test_a_path_without_room_is_left_and_the_search_goes_on() -> None:
    runtime = ShortOfRoom(("4", "5"))
    fixed = make_plan(JOB, runtime)
    runtime.room = len(fixed.prompt) + 14
    finished = run_search(JOB, fixed, runtime, Journal())
    tree = finished.search.tree
    failed = [r for r in tree.rollouts if r.finish is Finish.FAILED]
    assert failed and all(r.error == "PromptTooLong: full" for r in failed)
    assert len(tree.rollouts) == OPTIONS.rollouts
    # No round after the one that found it out asks there again.
    for r in failed:
        assert not any(o.start_id == r.start_id and o.round > r.round for o in tree.rollouts)


def test_a_prompt_without_room_is_the_job_s_error() -> None:
    runtime = ShortOfRoom()
    fixed = make_plan(JOB, runtime)
    runtime.room = len(fixed.prompt) - 1
    with pytest.raises(PromptTooLong, match=r"^full$"):
        run_search(JOB, fixed, runtime, Journal())


class Odd(ToyRuntime):
    """The branches with these ids fail."""

    def __init__(self, error: str, *ids: int) -> None:
        super().__init__()
        self._error, self._ids = error, ids

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        return [
            Branch(branch_id=b.branch_id, finish=Finish.FAILED, error=self._error)
            if b.branch_id in self._ids
            else b
            for b in super().branch(expansions)
        ]


ALONE = ReasoningJob(question="2 + 2?", options=OPTIONS.model_copy(update={"strategy": "tree"}))


def test_a_branch_that_fails_alone_in_its_round_is_one_of_many() -> None:
    """Tried again it would fail in the same way, until the job is dead."""
    runtime = Odd("BranchFailed: the runtime ended the branch: content_filter", 2)
    finished = run_search(ALONE, make_plan(ALONE, runtime), runtime, Journal())
    rollouts = finished.search.tree.rollouts
    assert rollouts[1].round < rollouts[2].round < rollouts[3].round
    assert [r.rollout_id for r in rollouts if r.finish is Finish.FAILED] == [2]
    assert len(rollouts) == OPTIONS.rollouts


@pytest.mark.parametrize(
    ("error", "ids"),
    [("RuntimeUnavailable: 503", [2]), ("BranchFailed: odd", [0]), ("BranchFailed: odd", [1, 2])],
)
def test_what_does_not_look_like_one_branch_s_own_failure_is_the_runtime_s(
    error: str, ids: list[int]
) -> None:
    runtime = Odd(error, *ids)
    with pytest.raises(RuntimeUnavailable, match="the branch failed"):
        run_search(ALONE, make_plan(ALONE, runtime), runtime, Journal())


def test_tokens_of_a_round_that_is_dropped_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancel fails what is in flight; branches that had finished were generated for nothing."""
    asked, counted = list[Branch](), dict[str, float]()

    class Noting(ToyRuntime):
        def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
            *kept, last = super().branch(expansions)
            failed = Branch(branch_id=last.branch_id, finish=Finish.FAILED, error="aborted")
            asked[:] = [*kept, failed]
            return asked

    class Cancelled(Journal):
        def should_stop(self) -> StopReason | None:
            return StopReason.CANCELLED if asked else None

    def record(metric: metrics.Metric, amount: float = 1.0, *_: str) -> None:
        counted[metric.name] = amount

    monkeypatch.setattr(metrics, "record", record)
    finished = run_search(JOB, make_plan(JOB, ToyRuntime()), Noting(), Cancelled())
    assert (finished.search.tree.rollouts, len(asked) > 1) == ([], True)
    wanted = sum(b.generated_tokens for b in asked)
    assert wanted > 0
    assert counted == {"marco_failed_rollout_tokens_total": wanted}


@pytest.mark.parametrize("said", ["2 hours and 30 minutes", "2.5 hours", "5 to the 3rd"])
def test_what_is_compared_with_the_expected_answer_is_what_was_voted_on(said: str) -> None:
    job = ReasoningJob(question="How long?", expected=said, options=SearchOptions(strategy="cot"))
    other = job.model_copy(update={"expected": "3"})
    assert solve(job, runtime=ToyRuntime([said])).correct is True
    assert solve(other, runtime=ToyRuntime([said])).correct is False


def test_a_result_has_what_was_asked_and_the_caller_s_metadata() -> None:
    job = ReasoningJob(question="2 + 2?", options=SearchOptions(strategy="cot"))
    found = solve(job.model_copy(update={"metadata": {"row": 7}}), runtime=ToyRuntime())
    assert (found.subject, found.metadata) == ("2 + 2?", {"row": 7})
    assert solve(job, runtime=ToyRuntime()).metadata is None
