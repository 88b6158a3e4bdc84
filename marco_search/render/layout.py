"""What all drawings of a tree share: the order of siblings, each node's place and its label.

The winning path comes first, then the most visited. An only child stands right below its parent,
so that a chain reads as a text; where the ways part, each begins one column to the right:

    root
    a
    ├─ b
    │  answer
    └─ c
       ├─ answer
       └─ answer
"""

from __future__ import annotations

import heapq
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from os.path import commonprefix
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from marco_search.search.actions import Action
from marco_search.text import CONTROL, escaped

if TYPE_CHECKING:
    from marco_search.store.reads.job_record import Fork, TreeRow

ELLIPSIS = "…"
LINE_END = "⏎"
ANSWER_SIGN = "→ "
TAGS = ("<Thought>", "</Thought>", "<Output>", "</Output>", "<think>", "</think>")
STOP_REASONS = {
    "rollouts": "all rollouts done",
    "tokens": "token budget spent",
    "seconds": "time budget spent",
    "decided": "the vote was decided",
    "lead": "far enough ahead",
    "verified": "the verifier accepted an answer",
    "cancelled": "cancelled",
    "deadline": "its deadline came",
}


def children_of(nodes: Sequence[TreeRow], winning: Collection[int]) -> dict[int, list[TreeRow]]:
    """The children of every node, best first. The first of `nodes` is the root.

    A node whose parent is missing hangs from the root: a tree that was tampered with is drawn
    too, and verification says what is wrong with it.
    """
    children: dict[int, list[TreeRow]] = {node.node_id: [] for node in nodes}
    for node in nodes[1:]:
        parent = nodes[0].node_id if node.parent_id is None else node.parent_id
        children[parent if parent in children else nodes[0].node_id].append(node)
    for siblings in children.values():
        siblings.sort(key=lambda n: (n.node_id not in winning, -n.visits, -(n.value or 0.0)))
    return children


def joined(nodes: Sequence[TreeRow]) -> dict[int, TreeRow]:
    """The node that each is drawn in, by id: spans without a choice between them are one.

    It has the id of the last of them and the parent and the fork of the first.
    """
    children = children_of(nodes, ())
    drawn: dict[int, TreeRow] = {}
    chains: dict[int, list[int]] = {}  # ids of the nodes in one, by the last
    for node in nodes:
        above = drawn.get(-1 if node.parent_id is None else node.parent_id)
        chain = [node.node_id]
        same = above and node.action == above.action == Action.SPAN and node.visits == above.visits
        if above and same and len(children[above.node_id]) == 1:
            chain = chains.pop(above.node_id) + chain
            node = _together(above, node)
        chains[node.node_id] = chain
        drawn[node.node_id] = node
    return {i: drawn[last] for last, chain in chains.items() for i in chain}


def _together(above: TreeRow, node: TreeRow) -> TreeRow:
    tokens = above.tokens + node.tokens
    sums = ((n.confidence or 0.0) * n.tokens for n in (above, node))
    return replace(
        node,
        parent_id=above.parent_id,
        depth=above.depth,
        text=above.text + node.text,
        tokens=tokens,
        confidence=sum(sums) / tokens if tokens else None,
        fork=above.fork,
    )


class Layout:
    """A tree as it is drawn: nodes, parents before children; the winning path; all children."""

    def __init__(self, nodes: Sequence[TreeRow], winning: Iterable[int]) -> None:
        """`nodes` has parents before children; here they are `joined`."""
        found = joined(nodes)
        self.nodes = list({node.node_id: node for node in found.values()}.values())
        self.winning = dict.fromkeys(found[i].node_id for i in winning if i in found)
        self.children = children_of(self.nodes, self.winning)

    def only(self, keep: Collection[int]) -> Layout:
        """With these nodes only."""
        part = copy(self)
        part.nodes = [node for node in self.nodes if node.node_id in keep]
        part.winning = {i: None for i in self.winning if i in keep}
        part.children = children_of(part.nodes, part.winning)
        return part


def unsure(siblings: Sequence[TreeRow]) -> str | None:
    """What the model hesitated between where these begin, if a fork is among them."""
    forks = [node.fork for node in siblings if node.fork]
    if not forks:
        return None
    options = [_option(forks[0]["taken"], forks[0]["taken_share"])]
    forks.sort(key=lambda fork: -fork["passed_over_share"])
    options += [_option(fork["passed_over"], fork["passed_over_share"]) for fork in forks]
    return f"here it was unsure between {', '.join(options[:-1])} and {options[-1]}"


def instead(fork: Fork) -> str:
    """A fork in short, for where it is drawn."""
    taken = _option(fork["taken"], fork["taken_share"])
    return f"{_option(fork['passed_over'], fork['passed_over_share'])} instead of {taken}"


def _option(text: str, share: float) -> str:
    read = one_line(text) or (LINE_END if "\n" in text else "a space")
    return f"{read} ({f'{share:.2f}'.removeprefix('0')})"


@dataclass(frozen=True, slots=True)
class Place:
    """A cell of the grid: a row for each node, a column for each choice above it."""

    column: int
    row: int


def places(tree: Layout) -> dict[int, Place]:
    """The place of each node by its id, by rows."""
    found: dict[int, Place] = {}
    # A stack, not recursion: a chain of mini-steps may be deeper than Python's stack.
    stack = [(node.node_id, 0) for node in tree.nodes[:1]]
    while stack:
        node_id, column = stack.pop()
        found[node_id] = Place(column, len(found))
        below = tree.children[node_id]
        column += len(below) > 1
        stack += [(child.node_id, column) for child in reversed(below)]
    return found


def flow(tree: Layout) -> str:
    """The direction that Graphviz and Mermaid draw in: down for chains, else to the right."""
    leaves = sum(not below for below in tree.children.values())
    return "TB" if len(tree.nodes) > 4 * leaves else "LR"


def visible_nodes(tree: Layout, limit: int | None, depth: int | None) -> frozenset[int]:
    """Ids of the nodes to draw: the winning path, then those visited most with their parents.

    At most `limit` nodes, except that the winning path is always whole, and none more than
    `depth` edges below the root. None: no limit.
    """
    root, children = tree.nodes[0].node_id, tree.children
    depths = {root: 0}
    for parent, below in children.items():
        if parent in depths:  # no path leads to a ring of nodes in a tree that was tampered with
            depths |= {child.node_id: depths[parent] + 1 for child in below}
    deepest = len(tree.nodes) if depth is None else depth
    shown = {i for i in tree.winning if depths.get(i, deepest + 1) <= deepest} | {root}
    frontier: list[tuple[int, int, int]] = []

    def offer(parent: int) -> None:
        for child in children[parent]:
            if child.node_id not in shown and depths[child.node_id] <= deepest:
                entry = (-child.visits, depths[child.node_id], child.node_id)
                heapq.heappush(frontier, entry)

    for node_id in tuple(shown):
        offer(node_id)
    while frontier and (limit is None or len(shown) < limit):
        node_id = heapq.heappop(frontier)[2]
        shown.add(node_id)
        offer(node_id)
    return frozenset(shown)


def one_line(text: str) -> str:
    """`text` on one line: line ends shown as a sign, other control characters as U+FFFD.

    A model's text could otherwise move the cursor, recolour the screen or reverse the line.
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return "".join(map(_visible, f" {LINE_END} ".join(lines)))


def _visible(character: str) -> str:
    if character == "\t":
        return " "
    category = unicodedata.category(character)
    if category == "Cf":  # invisible, among them what joins the parts of an emoji
        return escaped(character) if CONTROL.match(character) else ""
    return "\ufffd" if category in ("Cc", "Cs") else character


def label(action: str, text: str, *, answer_sign: str = ANSWER_SIGN) -> str:
    """A node's text on one line, without the prompt's tags, never empty; answers get a sign."""
    if action == "root":
        return one_line(text) or "(the question)"
    for tag in TAGS:
        text = text.replace(tag, "\n")
    if action == "answer":
        return answer_sign + (one_line(text) or "(no answer)")
    return one_line(text) or "(nothing but a line end)"


def cut(text: str, cells: int) -> str:
    """`text` cut to so many terminal cells (a Chinese character takes two), with an ellipsis."""
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, max(0, cells - 1)).rstrip() + ELLIPSIS


@dataclass(frozen=True, slots=True)
class Label:
    """A node's text on one line: how a sibling begins too, and from where on it is its own."""

    shared: str
    own: str

    @property
    def whole(self) -> str:
        return self.shared + self.own

    def fitting(self, cells: int) -> str:
        """In at most so many terminal cells: what is shared goes before what is not."""
        room = cells - cell_len(self.own)
        if room < _LEAST_SHARED:
            return cut((self.shared and ELLIPSIS + self.own) or self.own, cells)
        return cut(self.shared, room) + self.own


_LEAST_SHARED = 6  # cells or characters; of less it is not worth leaving something out
_CONTEXT = 12  # characters or cells before a difference in which its word is looked for
_WORD = re.compile(r"[^\s,;:，。；：、]*$")
_RUN = re.compile(r"[0-9A-Za-z]*$")


def told_apart(texts: Sequence[str]) -> list[Label]:
    """Labels of siblings: each is split before the word in which it differs from all others."""
    shared = dict.fromkeys(texts, 0)
    # In this order no other text has more in common with one than those beside it.
    for pair in pairwise(sorted(shared)):
        common = len(commonprefix(pair))  # noqa: RUF071  # characters are what counts
        shared |= {text: max(common, shared[text]) for text in pair}
    return [_split(text, shared[text]) for text in texts]


def _split(text: str, shared: int) -> Label:
    shared = min(shared, len(text) - 1)  # something is left of the beginning of another
    near = text[max(0, shared - _CONTEXT) : shared]
    word = len(_WORD.search(near)[0])  # type: ignore[index]  # "" at least
    if cell_len(near[len(near) - word :]) >= _CONTEXT:  # a long formula, or Chinese
        word = len(_RUN.search(near)[0])  # type: ignore[index]
    at = shared - word
    return Label(text[:at], text[at:]) if at >= _LEAST_SHARED else Label("", text)


def labels(tree: Layout, *, answer_sign: str = ANSWER_SIGN) -> dict[int, Label]:
    """The label of each node by its id."""
    found = {node.node_id: Label("", label(node.action, node.text)) for node in tree.nodes[:1]}
    for siblings in tree.children.values():
        texts = [label(node.action, node.text, answer_sign=answer_sign) for node in siblings]
        apart = told_apart(texts)
        found |= {node.node_id: one for node, one in zip(siblings, apart, strict=True)}
    return found


def score(value: float | None) -> str:
    """A value or confidence with three decimals; a dash for none."""
    return "–" if value is None else f"{value:.3f}"


def short_id(job_id: object) -> str:
    """The end of an id, which is random; its beginning is a time. Enough to name a job by."""
    return str(job_id)[-8:]


def weighting(
    vote: str | None,
    sharpness: float | None,
    reward: str | None = None,
    spread: float | None = None,
    reference: float | None = None,
) -> str:
    """What the shares of the answers are shares of; "" where each rollout has one vote.

    Of the numbers None is the default: see `search.votes.Scale`.
    """
    name = "confidence" if reward in (None, "rollout") else reward
    if vote == "best":
        confident = name == "confidence"
        return f"ranked by the {'most confident rollout' if confident else f'highest {name}'}"
    if vote != "weighted":
        return ""
    power = (1.0 if sharpness is None else sharpness) / (spread or 1.0)
    if reference:
        name = f"({name}/{math.exp(reference):.3g})"
    most = ", 1 at most" if reference and reference < 0 else ""
    return f"votes weighted by {name}{'' if power == 1 else f'^{power:.3g}'}{most}"
