"""The actions of the tree, and how a branch's tokens are cut into them.

`ACTIONS` holds the ways to cut a thought: into lines (step), into sentences, into runs of n
tokens (mini-step) or not at all (whole). A new kind of action is a function that yields the
places to cut at, and an entry there. Everything from the end of the thought on is one ANSWER
action, so that with every kind a node ends where the thought does: that is where reflection
may branch off. Cuts fall between tokens, never inside a character, and lose none.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp

from marco_search.search.branches import Token, TurnFormat, text_ends, tokens_before

Cuts = Callable[[Sequence[Token], int], Iterator[int]]
"""(tokens of a thought, size) -> indices of the tokens that begin the next nodes.

`cut` moves an index inside a character to the character's first token."""
LEAST_SHARE = 0.02
"""Minimum share of a candidate among the best, to fork at it. .005 and .1 were no better."""


class Action:
    """Names of actions, as in nodes and the audit trail."""

    ROOT = "root"
    #: The reflection phrase, inserted by the search.
    REFLECTION = "reflection"
    #: From the end of the thought to the end of the output.
    ANSWER = "answer"
    STEP = "step"
    SENTENCE = "sentence"
    MINI_STEP = "mini_step"
    #: From one token that the model was unsure of to the next.
    SPAN = "span"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionKind:
    """One way to cut a thought into nodes."""

    meaning: str  #: for help texts
    cuts: Cuts
    branches_inside: bool = True  #: False: only the root and reflections are sampled again


def _lines(tokens: Sequence[Token], _: float) -> Iterator[int]:
    """Before each line's first token; blank lines stay with the line before them."""
    blank, line_ended = True, False
    for i, token in enumerate(tokens):
        has_text = bool(token.text.strip())
        if line_ended and not blank and has_text:
            yield i
            blank, line_ended = True, False
        blank = blank and not has_text
        line_ended = line_ended or (not blank and "\n" in token.text)


_SENTENCE = re.compile(r"(?<=[.!?])[ ]+(?=\S)|(?<=[。！？])(?=\S)|\n\s*(?=\S)")
_LABEL = re.compile(r"\s*(?:\d{1,2}[.)]|[-*•])\s*")  # of a list: its text follows


def _sentences(tokens: Sequence[Token], _: float) -> Iterator[int]:
    """Before each sentence's or line's first token; a list item's number is no sentence."""
    text, ends, begin = "".join(t.text for t in tokens), text_ends(tokens), 0
    for end in (m.end() for m in _SENTENCE.finditer(text)):
        if not _LABEL.fullmatch(text, begin, end):
            begin = end
            yield bisect_right(ends, end)


def _runs(tokens: Sequence[Token], size: int) -> Iterator[int]:
    """After every `size` tokens, or later if that is inside a character."""
    start = 0
    for i in range(1, len(tokens)):
        # A token without text is inside a character.
        if i - start >= size and tokens[i - 1].text:
            yield i
            start = i


def _spans(tokens: Sequence[Token], _size: int) -> Iterator[int]:
    """Before each token that has an alternative to fork at."""
    for i, token in enumerate(tokens):
        if i and tokens[i - 1].text and any(c >= LEAST_SHARE for _, c in passed_over(token)):
            yield i


def passed_over(token: Token) -> list[tuple[int, float]]:
    """The alternatives to this token, best first: id, and share of the best candidates."""
    total = sum(exp(p) for _, p in token.top)
    return [(i, exp(p) / total) for i, p in token.top if i != token.id] if total > 0.0 else []


ACTIONS: dict[str, ActionKind] = {
    Action.STEP: ActionKind(meaning="one line of the thought", cuts=_lines),
    Action.SENTENCE: ActionKind(meaning="one sentence of the thought", cuts=_sentences),
    Action.MINI_STEP: ActionKind(meaning="a fixed number of tokens of the thought", cuts=_runs),
    Action.SPAN: ActionKind(
        meaning="from one token the model was unsure of to the next", cuts=_spans
    ),
    Action.WHOLE: ActionKind(
        meaning="a whole thought", cuts=lambda _tokens, _size: iter(()), branches_inside=False
    ),
}
"""Name to kind: what `SearchConfig.action` may be."""


def cut(
    tokens: Sequence[Token],
    action: str,
    size: int,
    turn: TurnFormat,
    *,
    thought_open: bool,
    before: str = "",
    ended: bool = False,
    closing: bool = False,
) -> list[tuple[str, tuple[Token, ...]]]:
    """`tokens` divided into (action, tokens), in order.

    `thought_open` says whether the text `before` them is still inside the thought (the end of
    which may begin there), `ended` whether the turn ends with them, `closing` whether their end
    was replaced by a reflection.
    """
    end = _end_of_thought(tokens, turn, before, ended, closing) if thought_open else 0
    thought = tokens[:end]
    bounds = [0, *_starts(thought, ACTIONS[action].cuts(thought, size)), end] if end else []
    parts = [(action, tuple(tokens[a:b])) for a, b in pairwise(bounds)]
    if end < len(tokens):
        parts.append((Action.ANSWER, tuple(tokens[end:])))
    return parts


def _starts(tokens: Sequence[Token], cuts: Iterable[int]) -> list[int]:
    """The valid ones of these indices, in order, each moved to the start of a character."""
    found = set()
    for at in cuts:
        while 0 < at < len(tokens) and not tokens[at - 1].text:  # inside the same character
            at -= 1
        if 0 < at < len(tokens):
            found.add(at)
    return sorted(found)


def _end_of_thought(
    tokens: Sequence[Token], turn: TurnFormat, before: str, ended: bool, closing: bool
) -> int:
    """Index of the token in which the end of the thought begins; len(tokens) if in none."""
    longest = max(map(len, turn.thought_ends), default=1)
    begun = before[max(0, len(before) - longest + 1) :]  # holds no whole one
    at = turn.end_in(begun + "".join(t.text for t in tokens))
    end = len(tokens) if at < 0 else len(tokens_before(tokens, at - len(begun)))
    if turn.end_of_thought or closing or not (ended or at >= 0):
        return end
    # Without tags the answer begins with a sentence: that with the marker, else the last.
    return max(at for at in (0, *_starts(tokens, _sentences(tokens, 0))) if at <= end)
