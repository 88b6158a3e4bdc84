"""A search interrupted anywhere, any number of times, ends as one that never was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from marco_search import engine
from marco_search.kinds import ReasoningJob
from marco_search.search.branches import Branch, Expansion
from marco_search.search.budgets import StopReason
from marco_search.search.tree import Round, Tree
from tests.toy import ToyRuntime

jobs = st.builds(
    lambda strategy, rollouts, seed, early_stop: ReasoningJob.model_validate({
        "question": "What is 1 + 1?",
        "options": {
            "strategy": strategy, "rollouts": rollouts, "seed": seed, "early_stop": early_stop,
            "max_new_tokens": 200,
        },
    }),
    st.sampled_from(["step", "mini-step-8", "vote", "auto"]),
    st.integers(1, 40),
    st.integers(0, 2**31 - 1),
    st.booleans(),
)  # fmt: skip
MOMENTS = ("generating", "before the commit", "after the commit")
kills = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(MOMENTS)), max_size=8)


class Killed(BaseException):
    """As kill -9: nothing of the attempt goes on after it."""


@dataclass
class Journal(engine.Journal):
    """Keeps rounds as the trail does, whole or not at all. Kills the nth round of an attempt."""

    rounds: list[Round] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    kill_at: int = -1
    moment: str = ""

    def load(self) -> tuple[Tree, float]:
        """The rounds that earlier attempts committed."""
        nodes = [n for r in self.rounds for n in r.nodes]
        rollouts = [o for r in self.rounds for o in r.rollouts]
        return Tree.restore(nodes, rollouts, self.texts), 0.0

    def append(self, kept: Round, texts: Mapping[int, str], *, last: bool) -> None:
        """Commit one round, unless killed before."""
        dies = self.kill_at == 0
        self.kill_at -= 1
        if dies and self.moment == "before the commit":
            raise Killed
        assert kept.number == len(self.rounds) + 1
        self.rounds.append(kept)
        self.texts |= texts
        if dies:
            raise Killed

    def should_stop(self) -> StopReason | None:
        """Never."""
        return None


class Counting(ToyRuntime):
    """Counts how often each branch was generated, and refuses those that are kept."""

    def __init__(self, journal: Journal, generated: Counter[int]) -> None:
        super().__init__()
        self._journal, self._generated = journal, generated

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        asked = [r.branch_id for e in expansions for r in e.branches]
        kept = {o.rollout_id for r in self._journal.rounds for o in r.rollouts}
        assert not kept & set(asked), "a committed branch was asked for again"
        self._generated.update(asked)
        if self._journal.kill_at == 0 and self._journal.moment == "generating":
            raise Killed
        return super().branch(expansions)


@given(jobs, kills)
@settings(max_examples=150)
def test_any_number_of_interruptions_change_nothing(
    job: ReasoningJob, kills: list[tuple[int, str]]
) -> None:
    whole = Journal()
    plan = engine.make_plan(job, ToyRuntime())
    reference = engine.run_search(job, plan, ToyRuntime(), whole)

    journal, generated, died = Journal(), Counter[int](), 0
    for kill_at, moment in [*kills, (-1, "")]:
        journal.kill_at, journal.moment = kill_at, moment
        fixed = engine.SearchPlan.from_json(plan.to_json())
        try:
            last = engine.run_search(job, fixed, Counting(journal, generated), journal)
        except Killed:
            died += moment != "after the commit"
    assert journal.rounds == whole.rounds
    assert last.search.ranked() == reference.search.ranked()
    assert last.search.stop_reason == reference.search.stop_reason
    # Only the rounds that died uncommitted were generated twice: one for each such death.
    in_round = max((len(r.rollouts) for r in whole.rounds), default=0)
    again = sum(generated.values()) - len(generated)
    assert again <= died * in_round
    assert len(generated) == sum(len(r.rollouts) for r in whole.rounds)
