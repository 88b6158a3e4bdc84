"""What a search does when paths grow too long for the model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from marco_search.engine import Journal, make_plan, run_search
from marco_search.errors import PromptTooLong
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.search.branches import Branch, Expansion, Finish
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
