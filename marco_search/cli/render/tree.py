"""A search tree as lines of text: visit count, value, and the tree with each node's text.

An only child stands right below its parent, at the same indentation, so that a chain of
steps reads as a text and only a choice moves to the right:

    visits  value
        16   .962  * (the question)
         9   .971  * ├─ 11*67=737.
         9   .971  * │  737+17=754.
         5   .980  * │  ├─ 754-81=673.
         4   .955    │  └─ 754-81=663.
         7   .948    └─ 11*67=727.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from rich.text import Text

from marco_search.cli.render.text import fold, fraction, wrap
from marco_search.render.layout import TreeNode, children_of, label, visible_nodes

_UTF8 = {"fork": "├─ ", "last": "└─ ", "bar": "│  ", "gap": "   ", "answer": "→ "}
_ASCII = {"fork": "|- ", "last": "`- ", "bar": "|  ", "gap": "   ", "answer": "-> "}
_MARGIN = 17  # cells before the tree: counts, values and the winner's mark
_LEAST_TEXT = 24  # cells that a node's text gets however deep it stands


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnNode:
    """What is drawn of one node. The root has no parent."""

    node_id: int
    parent_id: int | None
    action: str  # as in search.config.Action
    text: str
    visits: int
    value: float | None  # mean backed-up value; None before the first visit


def draw_tree(
    nodes: Sequence[TreeNode],
    winning: Iterable[int],
    *,
    width: int = 100,
    limit: int | None = 40,
    depth: int | None = None,
    full: bool = False,
    ascii_only: bool = False,
) -> Text:
    """The tree of `nodes` (parents before children), `winning` path marked, best child first.

    `width` is in terminal cells. `limit` nodes at most are drawn, down to `depth` edges below
    the root; what is left out is counted where it hangs. `full` draws everything and wraps
    texts instead of folding them.
    """
    drawing = _Drawing(nodes, frozenset(winning), width, full, _ASCII if ascii_only else _UTF8)
    keep = visible_nodes(nodes, drawing.winning, None if full else limit, None if full else depth)
    heading = Text(" visits  value", style="dim")
    return Text("\n", no_wrap=True, overflow="ignore").join([heading, *drawing.lines(keep)])


def tree_json(nodes: Sequence[TreeNode], winning: Iterable[int]) -> dict[str, object]:
    """The same tree for scripts: every node whole, and the ids of the winning path."""
    names = [field.name for field in fields(DrawnNode)]
    drawn = [{name: getattr(node, name) for name in names} for node in nodes]
    return {"nodes": drawn, "winning_path": list(winning)}


class _Drawing:
    def __init__(
        self,
        nodes: Sequence[TreeNode],
        winning: frozenset[int],
        width: int,
        full: bool,
        signs: dict[str, str],
    ) -> None:
        self.winning, self.width, self.full, self.signs = winning, width, full, signs
        self.root = nodes[0]
        self.children = children_of(nodes, winning)

    def lines(self, keep: frozenset[int]) -> Iterator[Text]:
        # A stack, not recursion: a chain of mini-steps may be deeper than Python's stack.
        stack: list[tuple[TreeNode | int, str, str]] = [(self.root, "", "")]
        while stack:
            item, lead, below = stack.pop()
            if isinstance(item, int):
                yield Text(f"{'':{_MARGIN}}{lead}{_left_out(item)}", style="dim")
                continue
            yield from self._node(item, lead, below)
            children = self.children[item.node_id]
            drawn = [child for child in children if child.node_id in keep]
            hidden = sum(map(self._size, (c for c in children if c.node_id not in keep)))
            entries: list[TreeNode | int] = [*drawn, *([hidden] if hidden else [])]
            for i in reversed(range(len(entries))):
                stack.append((entries[i], *self._leads(below, i, len(entries))))

    def _leads(self, above: str, i: int, count: int) -> tuple[str, str]:
        """What stands before a child's first line, and before all that hangs below it."""
        if count == 1:
            return above, above
        last = i == count - 1
        return (
            above + self.signs["last" if last else "fork"],
            above + self.signs["gap" if last else "bar"],
        )

    def _size(self, node: TreeNode) -> int:
        count, stack = 0, [node]
        while stack:
            count += 1
            stack.extend(self.children[stack.pop().node_id])
        return count

    def _node(self, node: TreeNode, lead: str, below: str) -> Iterator[Text]:
        wins = node.node_id in self.winning
        value = fraction(node.value) if node.visits else "-"
        shown = label(node.action, node.text, answer_sign=self.signs["answer"])
        space = max(_LEAST_TEXT, self.width - _MARGIN - len(lead))
        texts = wrap(shown, space) if self.full else [fold(shown, space)]
        style = "bold green" if wins else "italic" if node.action == "reflection" else ""
        first = Text(f"{node.visits:7}  {value:>5} {'*' if wins else ' '} ")
        yield first.append(lead, style="dim").append(texts[0], style=style)
        for text in texts[1:]:
            yield Text(" " * _MARGIN).append(below, style="dim").append(text, style=style)


def _left_out(count: int) -> str:
    return f"… {count:,} more node{'' if count == 1 else 's'}"
