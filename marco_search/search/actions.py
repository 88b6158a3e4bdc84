"""The actions of the tree, and how a branch's tokens are cut into them.

`ACTIONS` holds the ways to cut a thought: into lines (step), into runs of n tokens
(mini-step) or not at all (whole). A new kind of action is a function that yields the places
to cut at, and an entry there. Everything from the end of the thought on is one ANSWER action,
so that with every kind a node ends where the thought does: that is where reflection may
branch off. Cuts fall between tokens, never inside a character, and lose none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from marco_search.search.branches import END_OF_THOUGHT, Token

Cuts = Callable[[Sequence[Token], int], Iterator[int]]
"""(tokens of a thought, size) -> ascending indices of the tokens that begin the next node."""


class Action:
    """Names of actions, as nodes and the audit trail have them."""

    ROOT = "root"
    #: The reflection phrase, put in by the search.
    REFLECTION = "reflection"
    #: From the end of the thought to the end of the output.
    ANSWER = "answer"
    STEP = "step"
    MINI_STEP = "mini_step"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionKind:
    """One way to cut a thought into nodes."""

    meaning: str  #: for help texts
    cuts: Cuts
    branches_inside: bool = True  #: False: only the root and reflections are sampled again


def _lines(tokens: Sequence[Token], _: int) -> Iterator[int]:
    """Before each line's first token; blank lines stay with the line before them."""
    blank, line_ended = True, False
    for i, token in enumerate(tokens):
        has_text = bool(token.text.strip())
        if line_ended and not blank and has_text:
            yield i
            blank, line_ended = True, False
        blank = blank and not has_text
        line_ended = line_ended or (not blank and "\n" in token.text)


def _runs(tokens: Sequence[Token], size: int) -> Iterator[int]:
    """After every `size` tokens, or later where that is inside a character."""
    start = 0
    for i in range(1, len(tokens)):
        # A token without text is inside a character.
        if i - start >= size and tokens[i - 1].text:
            yield i
            start = i


ACTIONS: dict[str, ActionKind] = {
    Action.STEP: ActionKind(meaning="one line of the thought", cuts=_lines),
    Action.MINI_STEP: ActionKind(meaning="a fixed number of tokens of the thought", cuts=_runs),
    Action.WHOLE: ActionKind(
        meaning="a whole thought", cuts=lambda _tokens, _size: iter(()), branches_inside=False
    ),
}
"""Name to kind: what `SearchConfig.action` may be."""


def cut(
    tokens: Sequence[Token], action: str, size: int, *, thought_open: bool
) -> list[tuple[str, tuple[Token, ...]]]:
    """The (action, tokens) that `tokens` make up, in order; joined they are `tokens` again.

    `thought_open` says whether the text before them is still inside the thought.
    """
    end = _end_of_thought(tokens) if thought_open else 0
    thought = tokens[:end]
    bounds = [0, *ACTIONS[action].cuts(thought, size), end] if end else []
    parts = [(action, tuple(tokens[a:b])) for a, b in pairwise(bounds)]
    if end < len(tokens):
        parts.append((Action.ANSWER, tuple(tokens[end:])))
    return parts


def _end_of_thought(tokens: Sequence[Token]) -> int:
    """Index of the token in which END_OF_THOUGHT begins; len(tokens) if it does not occur."""
    at = "".join(t.text for t in tokens).find(END_OF_THOUGHT)
    ends = list(accumulate(len(t.text) for t in tokens))
    return len(tokens) if at < 0 else bisect_right(ends, at)
