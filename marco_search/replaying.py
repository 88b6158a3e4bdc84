"""Generates a stored search again and compares: is it what this model says to this prompt?

Round by round: the search is restored as it stood before a round, asked for the round's
branches, and they are generated anew with the stored seeds. If every round is the same, so
is the whole tree; and where one round differs, those after it can still be compared, since
each goes on from what is stored. A search that was resumed by another attempt is one search;
one that was cancelled is compared as far as it came. A branch that had failed is taken as
failed, since a failure can't be generated.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

from marco_search.comparing import Difference, Tally
from marco_search.driver import Plan, restored
from marco_search.errors import ModelRefused
from marco_search.jobs import Job
from marco_search.runtime.base import Runtime
from marco_search.search.branches import Branch, Expansion, Finish
from marco_search.search.budgets import StopReason
from marco_search.search.mcts import Search
from marco_search.search.records import Node, Rollout, Round
from marco_search.search.tree import Tree

_REPEATABLE = (StopReason.ROLLOUTS, StopReason.TOKENS, StopReason.DECIDED, StopReason.LEAD)
"""Reasons to stop that follow from the tree; time and people are not replayed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """How a replay compares. Counts are of the stored search."""

    rounds: int
    rollouts: int
    nodes: int
    failed: int  # rollouts that had failed and were taken as failed
    same_rollouts: int  # the same tokens
    same_answers: int  # rollouts that reach the same answer, or both none
    read_otherwise: int  # the same tokens, in which this version reads another answer
    same_nodes: int  # bit for bit, log-probs and all
    greatest_gap: float  # between log-probs of the same tokens
    first: Difference | None  # of any kind; with the same tokens it is about log-probs

    @property
    def same_text(self) -> bool:
        """Every rollout has the same tokens."""
        return self.same_rollouts == self.rollouts

    @property
    def same_bits(self) -> bool:
        """Everything is the same, bit for bit."""
        return self.first is None


def replay(
    job: Job,
    fixed: Plan,
    nodes: Sequence[Node],
    rollouts: Sequence[Rollout],
    runtime: Runtime,
    *,
    stop_reason: str | None = None,
    on_round: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Generate a stored search again on `runtime`.

    `nodes` (below the root) and `rollouts` are in id order. `stop_reason` is the stored one,
    None if the search has not ended. `on_round` is told (rounds done, rounds in all).
    Raises ModelRefused if the runtime has another model or revision, and what it raises.
    """
    _require_same_model(fixed, runtime)

    def before(number: int) -> Search:
        earlier = [n for n in nodes if n.round < number]
        return restored(job, fixed, earlier, [r for r in rollouts if r.round < number])

    count = max((r.round for r in rollouts), default=0)
    tally = Tally(Tree.restore(nodes, rollouts))
    for number in range(1, count + 1):
        stored = Round(
            number=number,
            nodes=tuple(n for n in nodes if n.round == number),
            rollouts=tuple(r for r in rollouts if r.round == number),
        )
        search = before(number)
        again = _generate(search, stored, runtime, tally)
        if again is not None:
            tally.compare(stored, again, search.tree)
        if on_round:
            on_round(number, count)
    if stop_reason in _REPEATABLE:
        search = before(count + 1)
        search.ask()
        if search.stop_reason != stop_reason:
            tally.differs(count, None, "why it ended", stop_reason, str(search.stop_reason))
    return Replayed(
        rounds=count,
        rollouts=len(rollouts),
        nodes=len(nodes),
        failed=sum(r.finish is Finish.FAILED for r in rollouts),
        same_rollouts=tally.same_rollouts,
        same_answers=tally.same_answers,
        read_otherwise=tally.read_otherwise,
        same_nodes=tally.same_nodes,
        greatest_gap=tally.greatest_gap,
        first=tally.first,
    )


def _require_same_model(fixed: Plan, runtime: Runtime) -> None:
    info = runtime.info
    if (info.model, info.revision) != (fixed.model, fixed.revision):
        raise ModelRefused(
            f"the job was searched with {fixed.model} at revision {fixed.revision[:12]}, this "
            f"runtime has {info.model} at {info.revision[:12]}: a replay needs the same weights; "
            "set MARCO_RUNTIME and MARCO_MODEL to them"
        )


def _generate(search: Search, stored: Round, runtime: Runtime, tally: Tally) -> Round | None:
    """The stored round generated anew; None if this search would not have asked for it."""
    expansions = search.ask()
    asked = {r.branch_id: (e.node_id, r) for e in expansions for r in e.branches}
    for rollout in stored.rollouts:
        node_id, request = asked.get(rollout.rollout_id, (None, None))
        if request is None or (node_id, request.seed) != (rollout.start_id, rollout.seed):
            now = "none" if request is None else f"node {node_id}, seed {request.seed}"
            there = f"node {rollout.start_id}, seed {rollout.seed}"
            tally.differs(stored.number, rollout.rollout_id, "branch asked for", there, now)
            return None
    if len(asked) != len(stored.rollouts):
        there, now = f"{len(stored.rollouts)} branches", f"{len(asked)}"
        tally.differs(stored.number, None, "size of the round", there, now)
        return None
    branches = [
        Branch(
            branch_id=r.rollout_id, finish=r.finish, error=r.error, prompt_tokens=r.prompt_tokens
        )
        for r in stored.rollouts
        if r.finish is Finish.FAILED
    ]
    failed = {b.branch_id for b in branches}
    wanted = [e for e in (_without(e, failed) for e in expansions) if e.branches]
    if wanted:
        branches += runtime.branch(wanted)
    return search.tell(branches)


def _without(expansion: Expansion, left_out: Container[int]) -> Expansion:
    kept = tuple(r for r in expansion.branches if r.branch_id not in left_out)
    return replace(expansion, branches=kept)
