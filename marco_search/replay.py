"""Generates a stored search again and compares: does this model generate it for this prompt?

Round by round: the search is asked for the round's branches, and they are generated again with
the stored seeds. If every round is the same, so is the whole tree. After a round that differs the
search is restored from what is stored, so that later rounds can still be compared. A search that
was resumed by another attempt counts as one; of a cancelled one the stored rounds are compared.
Branches that failed count as failed, since a failure can't be reproduced, and external rewards
are taken from the trail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from marco_search.engine import SearchPlan, require_same, restore_search
from marco_search.jobs import Job
from marco_search.jobs.validation import shortened
from marco_search.runtime.base import Runtime
from marco_search.search.branches import Branch, Finish, Token
from marco_search.search.budgets import StopReason
from marco_search.search.mcts import Search
from marco_search.search.rewards import EXTERNAL
from marco_search.search.tree import Node, Rollout, Round, Tree

_REPEATABLE = (
    StopReason.ROLLOUTS,
    StopReason.TOKENS,
    StopReason.DECIDED,
    StopReason.LEAD,
    StopReason.NOTHING_NEW,
    StopReason.VERIFIED,
)
"""Reasons to stop that follow from the tree; time and people are not replayed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where the replay differs from what is stored."""

    round: int
    rollout_id: int | None
    what: str  #: such as "token 12 of node 35"
    stored: str
    again: str

    def __str__(self) -> str:
        rollout = "" if self.rollout_id is None else f", rollout {self.rollout_id}"
        values = f"{self.stored} is stored, {self.again} was generated"
        return f"round {self.round}{rollout}, {self.what}: {values}"


@dataclass(slots=True, kw_only=True)
class Replayed:
    """Result of a comparison. Counts are of the stored search."""

    rounds: int
    rollouts: int
    nodes: int
    failed: int  #: rollouts that had failed and were taken as failed
    same_rollouts: int = 0  #: the same tokens
    same_answers: int = 0  #: rollouts that reach the same answer, or both none
    read_otherwise: int = 0  #: the same tokens, in which this version reads another answer
    same_nodes: int = 0  #: bit for bit, log-probs and all
    greatest_gap: float = 0.0  #: between log-probs of the same tokens
    first: Difference | None = None  #: of any kind; with the same tokens it is about log-probs

    @property
    def same_text(self) -> bool:
        """Every rollout has the same tokens."""
        return self.same_rollouts == self.rollouts

    @property
    def same_bits(self) -> bool:
        """Everything is the same, bit for bit."""
        return self.first is None

    def _differs(
        self, number: int, rollout_id: int | None, what: str, stored: object, again: object
    ) -> None:
        """Note a difference, if it is the first."""
        self.first = self.first or Difference(number, rollout_id, what, str(stored), str(again))


def replay(
    job: Job,
    plan: SearchPlan,
    nodes: Sequence[Node],
    rollouts: Sequence[Rollout],
    runtime: Runtime,
    *,
    texts: Mapping[int, str] | None = None,
    stop_reason: str | None = None,
    on_round: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Generate a stored search again on `runtime`.

    `nodes` (below the root) and `rollouts` are in id order, `texts` those of its candidates.
    `stop_reason` is the stored one, None if the search has not ended. `on_round` is called with
    (rounds done, rounds in all).
    Raises ModelRefused if the runtime has another model or revision, and what it raises.
    """
    require_same(plan, runtime)

    def before(number: int) -> Search:
        earlier = [n for n in nodes if n.round < number], [r for r in rollouts if r.round < number]
        return restore_search(job, plan, Tree.restore(*earlier, texts))

    count = max((r.round for r in rollouts), default=0)
    failed = sum(r.finish is Finish.FAILED for r in rollouts)
    found = Replayed(rounds=count, rollouts=len(rollouts), nodes=len(nodes), failed=failed)
    tree, search = Tree.restore(nodes, rollouts), before(1)
    for number in range(1, count + 1):
        stored = Round(
            number=number,
            nodes=tuple(n for n in nodes if n.round == number),
            rollouts=tuple(r for r in rollouts if r.round == number),
        )
        again = _generate(search, stored, runtime, found)
        if again is None or not _compare(found, stored, again, tree, search.tree):
            search = before(number + 1)
        if on_round:
            on_round(number, count)
    if stop_reason in _REPEATABLE:
        search.ask()
        if search.stop_reason != stop_reason:
            found._differs(count, None, "why it ended", stop_reason, search.stop_reason)
    return found


def _generate(search: Search, stored: Round, runtime: Runtime, found: Replayed) -> Round | None:
    """The stored round generated again; None if this search would not have asked for it."""
    expansions = search.ask()
    asked = {
        i: f"node {child.node_id}, seed {request.seed}{_begun_with(child.forced)}"
        for i, (child, request) in search.asked.items()
    }
    by_id = {r.rollout_id: r for r in stored.rollouts}
    for i, rollout in by_id.items():
        then = f"node {rollout.start_id}, seed {rollout.seed}{_begun_with(rollout.forced)}"
        now = asked.get(i, "none")
        if then != now:
            found._differs(stored.number, i, "branch asked for", then, now)
            return None
    if len(asked) != len(by_id):
        found._differs(
            stored.number, None, "size of the round", f"{len(by_id)} branches", len(asked)
        )
        return None
    failed = {
        i: Branch(branch_id=i, finish=r.finish, error=r.error, prompt_tokens=r.prompt_tokens)
        for i, r in by_id.items()
        if r.finish is Finish.FAILED
    }
    wanted = [
        replace(e, branches=tuple(r for r in e.branches if r.branch_id not in failed))
        for e in expansions
    ]
    wanted = [e for e in wanted if e.branches]
    generated = runtime.branch(wanted) if wanted else []
    if search.config.reward in EXTERNAL:
        generated = [
            replace(b, scores=by_id[b.branch_id].scores, error=b.error or by_id[b.branch_id].error)
            for b in generated
        ]
    return search.tell([*failed.values(), *generated])


def _begun_with(token_id: int | None) -> str:
    return "" if token_id is None else f", token {token_id}"


def _compare(found: Replayed, stored: Round, again: Round, before: Tree, now: Tree) -> bool:
    """Compare a round with the stored one; `before` and `now` are the trees after each.

    True if they are the same, so that the search can continue from what it generated.
    """
    generated = {r.rollout_id: r for r in again.rollouts}
    same = len(again.nodes) == len(stored.nodes)
    for rollout in stored.rollouts:
        other = generated[rollout.rollout_id]
        found.same_answers += rollout.answer == other.answer
        # Time and caching are the machine's.
        alike = replace(other, seconds=rollout.seconds, cached_tokens=rollout.cached_tokens)
        if _same_tokens(found, rollout, other, before, now):
            found.same_rollouts += 1
            if rollout.answer != other.answer:  # how a text is read is the version's
                found.read_otherwise += 1
                alike = replace(alike, answer=rollout.answer, value=rollout.value)
                same = False
        same &= _same(found, (stored.number, rollout.rollout_id), "rollout", rollout, alike)
    nodes = {n.node_id: n for n in again.nodes}
    for node in stored.nodes:
        place, twin = (stored.number, None), nodes.get(node.node_id)
        same_node = _same(found, place, f"node {node.node_id}", node, twin)
        found.same_nodes += same_node
        same &= same_node
    if len(nodes) != len(stored.nodes):
        then = f"{len(stored.nodes)} nodes"
        found._differs(stored.number, None, "nodes of the round", then, len(nodes))
    return same


def _same_tokens(found: Replayed, stored: Rollout, again: Rollout, before: Tree, now: Tree) -> bool:
    """Whether the rollouts have the same tokens; keeps where they part, and the log-probs' gap."""
    place = stored.round, stored.rollout_id
    was, are = _tokens(before, stored), _tokens(now, again)
    for i, ((node_id, old), (_, new)) in enumerate(zip(was, are, strict=False)):
        if old.id != new.id:
            found._differs(*place, f"token {i}, in node {node_id}", repr(old.text), repr(new.text))
            return False
        found.greatest_gap = max(found.greatest_gap, abs(old.logprob - new.logprob))
    if len(was) != len(are) or stored.finish != again.finish:
        then, new_length = f"{len(was)} tokens, {stored.finish}", f"{len(are)}, {again.finish}"
        found._differs(*place, "length", then, new_length)
        return False
    return True


def _tokens(tree: Tree, rollout: Rollout) -> list[tuple[int, Token]]:
    """What the rollout added to its start, with the node that each token is in."""
    own = rollout.path[rollout.path.index(rollout.start_id) + 1 :]
    return [(i, token) for i in own for token in tree.nodes[i].tokens]


def _same(
    found: Replayed,
    place: tuple[int, int | None],
    what: str,
    stored: Node | Rollout,
    again: Node | Rollout | None,
) -> bool:
    """Whether the records are equal; notes the first field that differs."""
    if again is None:
        found._differs(*place, what, "a node", "none")
        return False
    for name in (f.name for f in fields(stored)):
        old, new = getattr(stored, name), getattr(again, name)
        if old != new:
            then = f"{name} {shortened(repr(old))}"
            found._differs(*place, what, then, shortened(repr(new)))
            return False
    return True
