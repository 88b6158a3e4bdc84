"""Compares a search that was generated again with the one that is stored."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from marco_search.search.branches import Token
from marco_search.search.records import Node, Rollout, Round
from marco_search.search.tree import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first place where the replay is not what is stored."""

    round: int
    rollout_id: int | None
    what: str  # such as "token 12 of node 35"
    stored: str
    again: str

    def __str__(self) -> str:
        rollout = "" if self.rollout_id is None else f", rollout {self.rollout_id}"
        there = f"{self.stored} is stored, {self.again} came now"
        return f"round {self.round}{rollout}, {self.what}: {there}"


class Tally:
    """Counts what is the same, and keeps the first difference."""

    def __init__(self, stored: Tree) -> None:
        self._stored = stored
        self.same_rollouts = self.same_answers = self.same_nodes = self.read_otherwise = 0
        self.greatest_gap = 0.0
        self.first: Difference | None = None

    def differs(
        self, round_number: int, rollout_id: int | None, what: str, stored: str, again: str
    ) -> None:
        """Note a difference, if it is the first."""
        self.first = self.first or Difference(
            round=round_number, rollout_id=rollout_id, what=what, stored=stored, again=again
        )

    def compare(self, stored: Round, again: Round, tree: Tree) -> None:
        """Compare a round with the one that is stored; `tree` is the one it grew."""
        now = {r.rollout_id: r for r in again.rollouts}
        for rollout in stored.rollouts:
            other = now[rollout.rollout_id]
            self.same_answers += rollout.answer == other.answer
            # Time and caching are the machine's.
            alike = replace(other, seconds=rollout.seconds, cached_tokens=rollout.cached_tokens)
            if self._same_tokens(rollout, other, tree):
                self.same_rollouts += 1
                if rollout.answer != other.answer:  # how a text is read is the version's
                    self.read_otherwise += 1
                    alike = replace(alike, answer=rollout.answer, value=rollout.value)
            if rollout != alike:
                self.differs(stored.number, rollout.rollout_id, "rollout", *_unlike(rollout, alike))
        nodes = {n.node_id: n for n in again.nodes}
        for node in stored.nodes:
            twin = nodes.get(node.node_id)
            self.same_nodes += node == twin
            if node != twin:
                what = f"node {node.node_id}"
                self.differs(stored.number, None, what, *_unlike(node, twin))
        if len(nodes) != len(stored.nodes):
            there = f"{len(stored.nodes)} nodes"
            self.differs(stored.number, None, "nodes of the round", there, str(len(nodes)))

    def _same_tokens(self, stored: Rollout, again: Rollout, tree: Tree) -> bool:
        """Whether the rollouts say the same; notes where they part, and the log-probs' gap."""
        before, now = _tokens(self._stored, stored), _tokens(tree, again)
        for i, ((node_id, was), (_, token)) in enumerate(zip(before, now, strict=False)):
            if was.id != token.id:
                what = f"token {i}, in node {node_id}"
                told = repr(was.text), repr(token.text)
                self.differs(stored.round, stored.rollout_id, what, *told)
                return False
            self.greatest_gap = max(self.greatest_gap, abs(was.logprob - token.logprob))
        if len(before) != len(now) or stored.finish != again.finish:
            lengths = f"{len(before)} tokens, {stored.finish}", f"{len(now)}, {again.finish}"
            self.differs(stored.round, stored.rollout_id, "length", *lengths)
            return False
        return True


def _tokens(tree: Tree, rollout: Rollout) -> list[tuple[int, Token]]:
    """What the rollout added to its start, with the node that each token is in."""
    own = rollout.path[rollout.path.index(rollout.start_id) + 1 :]
    return [(i, token) for i in own for token in tree.nodes[i].tokens]


def _unlike(stored: Node | Rollout, again: Node | Rollout | None) -> tuple[str, str]:
    """The first field in which two records differ, as it is in each."""
    if again is None:
        return "a node", "none"
    names = (f.name for f in fields(stored))
    name = next(name for name in names if getattr(stored, name) != getattr(again, name))
    return f"{name} {_brief(getattr(stored, name))}", _brief(getattr(again, name))


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
