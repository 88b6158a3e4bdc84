"""Cuts a branch's tokens into actions: the nodes that a rollout leaves behind.

A thought is cut into lines (step), into runs of n tokens (mini-step) or not at all
(whole). Everything from the end of the thought on is one ANSWER action, so that in every
mode a node ends where the thought does: that is where reflection may branch off.
Cuts fall between tokens, never inside a character, and lose none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from marco_search.search.branches import END_OF_THOUGHT, Token
from marco_search.search.config import Action


@dataclass(frozen=True, slots=True)
class Cut:
    """A run of tokens that becomes one node."""

    action: Action
    tokens: tuple[Token, ...]

    @property
    def text(self) -> str:
        """The tokens' text."""
        return "".join(t.text for t in self.tokens)


def cut(
    tokens: Sequence[Token], *, action: Action, mini_step_tokens: int, thought_open: bool
) -> list[Cut]:
    """The actions that `tokens` make up, in order; joined they are `tokens` again.

    `thought_open` says whether the text before them is still inside the thought.
    """
    if not tokens:
        return []
    end = _end_of_thought(tokens) if thought_open else 0
    cuts = [Cut(action, part) for part in _thought(tokens[:end], action, mini_step_tokens)]
    if end < len(tokens):
        cuts.append(Cut(Action.ANSWER, tuple(tokens[end:])))
    return cuts


def _end_of_thought(tokens: Sequence[Token]) -> int:
    """Index of the token in which END_OF_THOUGHT begins; len(tokens) if it does not occur."""
    at = "".join(t.text for t in tokens).find(END_OF_THOUGHT)
    if at < 0:
        return len(tokens)
    seen = 0
    for i, token in enumerate(tokens):
        seen += len(token.text)
        if seen > at:
            return i
    raise AssertionError("the text was found in these tokens")


def _thought(tokens: Sequence[Token], action: Action, size: int) -> list[tuple[Token, ...]]:
    parts: list[tuple[Token, ...]] = []
    current: list[Token] = []
    blank = True  # nothing but white space so far
    line_ended = False
    for token in tokens:
        if action is Action.STEP and line_ended and not blank and token.text.strip():
            # Blank lines stay with the step before them.
            parts.append(tuple(current))
            current, blank, line_ended = [], True, False
        elif action is Action.MINI_STEP and len(current) >= size and current[-1].text:
            # A token without text is inside a character: the cut waits for its end.
            parts.append(tuple(current))
            current = []
        current.append(token)
        blank = blank and not token.text.strip()
        line_ended = line_ended or (not blank and "\n" in token.text)
    if current:
        parts.append(tuple(current))
    return parts
