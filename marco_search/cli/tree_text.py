"""A search tree as lines of text: visit count, value, and the tree with each node's text.

An only child is directly below its parent, at the same indentation, so that a chain of steps reads
as a text and only a choice moves to the right. Above a fork are the candidates that the model was
unsure between:

    visits  value
         3   .962 * (the question)
         3   .962 * 11*67=737.
                  * 737+17
                    here it was unsure between = (.63) and : (.37)
         2   .980 * ├─ =754.
                  * │  754-81=673.
         1   .955   └─ : 737+10=747, 747+7=754.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from marco_search.cli import output
from marco_search.render.layout import LINE_END, Label, Layout, labels, unsure, visible_nodes
from marco_search.search.actions import Action
from marco_search.text import counted

if TYPE_CHECKING:
    from marco_search.store.reads.job_record import TreeRow

_UTF8 = {"fork": "├─ ", "last": "└─ ", "bar": "│  ", "gap": "   ", "answer": "→ "}
_ASCII = {"fork": "|- ", "last": "`- ", "bar": "|  ", "gap": "   ", "answer": "-> "}
_BREAK = f" {LINE_END} "  # between lines that are on one
_MARGIN = 17  # cells before the tree: counts, values and the winner's mark
_LEAST_TEXT = 24  # cells that a node's text gets however deep it stands


def draw_tree(
    nodes: Sequence[TreeRow],
    winning: Iterable[int],
    *,
    width: int | None = None,
    limit: int | None = 40,
    depth: int | None = None,
    full: bool = False,
    ascii_only: bool | None = None,
) -> Text:
    """The tree of `nodes` (parents before children), `winning` path marked, best child first.

    `width`, in terminal cells, and `ascii_only` follow from standard output. `limit` nodes at
    most are drawn, down to `depth` edges below the root; what is left out is counted where it
    hangs. `full` draws everything and wraps texts instead of truncating them.
    """
    tree = Layout(nodes, winning)
    keep = visible_nodes(tree, None if full else limit, None if full else depth)
    signs = _ASCII if (output.ascii_only() if ascii_only is None else ascii_only) else _UTF8
    drawing = _Drawing(
        tree=tree,
        labels=labels(tree, answer_sign=signs["answer"]),
        width=output.terminal_width() if width is None else width,
        full=full,
        signs=signs,
    )
    heading = Text(" visits  value", style="dim")
    lines = drawing.lines(keep)
    return Text("\n", no_wrap=True, overflow="ignore").join([heading, *lines])


def tree_json(nodes: Sequence[TreeRow], winning: Iterable[int]) -> dict[str, object]:
    """The same tree for scripts: every node whole, and the ids of the winning path."""
    names = ("node_id", "parent_id", "action", "text", "visits", "value")
    drawn = [{name: getattr(node, name) for name in names} for node in nodes]
    return {"nodes": drawn, "winning_path": list(winning)}


@dataclass(frozen=True, slots=True)
class _Drawing:
    tree: Layout
    labels: Mapping[int, Label]
    width: int
    full: bool
    signs: Mapping[str, str]

    def lines(self, keep: frozenset[int]) -> Iterator[Text]:
        # A stack, not recursion: a chain of mini-steps may be deeper than Python's stack.
        stack: list[tuple[TreeRow | str, str, str]] = [(self.tree.nodes[0], "", "")]
        while stack:
            item, lead, below = stack.pop()
            if isinstance(item, str):
                yield Text(f"{'':{_MARGIN}}{lead}{item}", style="dim")
                continue
            yield from self._node(item, lead, below)
            children = self.tree.children[item.node_id]
            if note := unsure(children):
                yield Text(f"{'':{_MARGIN}}{below}").append(note, style="italic yellow")
            hidden = sum(self._size(child) for child in children if child.node_id not in keep)
            entries: list[TreeRow | str] = [c for c in children if c.node_id in keep]
            entries += [f"… {counted(hidden, 'more node')}"] if hidden else []
            for i in reversed(range(len(entries))):
                stack.append((entries[i], *self._leads(below, i, len(entries))))

    def _leads(self, above: str, i: int, count: int) -> tuple[str, str]:
        """The prefix of a child's first line, and of all lines below it."""
        if count == 1:
            return above, above
        fork, bar = ("last", "gap") if i == count - 1 else ("fork", "bar")
        return above + self.signs[fork], above + self.signs[bar]

    def _size(self, node: TreeRow) -> int:
        count, stack = 0, [node]
        while stack:
            count += 1
            stack.extend(self.tree.children[stack.pop().node_id])
        return count

    def _node(self, node: TreeRow, lead: str, below: str) -> Iterator[Text]:
        wins = node.node_id in self.tree.winning
        value = fraction(node.value) if node.visits else "-"
        space = max(_LEAST_TEXT, self.width - _MARGIN - len(lead))
        texts = self._texts(node, space)
        style = "bold green" if wins else "italic" if node.action == "reflection" else ""
        mark = "*" if wins else " "
        first = Text(f"{node.visits:7}  {value:>5} {mark} ")
        yield first.append(lead, style="dim").append(texts[0], style=style)
        for text in texts[1:]:
            yield Text(f"{mark:>16} ").append(below, style="dim").append(text, style=style)

    def _texts(self, node: TreeRow, space: int) -> list[str]:
        """The node's label in lines of at most `space` cells."""
        label = self.labels[node.node_id]
        lines = [label]
        if node.action == Action.SPAN:  # it begins and ends anywhere: what reads well is its lines
            *before, shared = label.shared.split(_BREAK)
            own, *after = label.own.split(_BREAK)
            lines = [Label("", text) for text in before] + [Label(shared, own)]
            lines += [Label("", text) for text in after]
        if self.full:
            return [part for line in lines for part in output.wrap_cells(line.whole, space)]
        return [line.fitting(space) for line in lines]


def fraction(value: float | None, none: str = "-") -> str:
    """A value in [0, 1] as three decimals, ".962"."""
    return none if value is None else f"{value:.3f}".removeprefix("0")
