"""What a node is called in a picture: its text on one line, without the prompt's tags."""

from __future__ import annotations

from marco_search.cli.render.text import one_line

TAGS = ("<Thought>", "</Thought>", "<Output>", "</Output>")
ROOT_LABEL = "(the question)"


def label(action: str, text: str, *, answer_sign: str = "→ ") -> str:
    """One line of text without control characters, never empty. An answer has a sign before it."""
    if action == "root":
        return one_line(text) or ROOT_LABEL
    for tag in TAGS:
        text = text.replace(tag, "\n")
    shown = one_line(text)
    if action == "answer":
        return answer_sign + (shown or "(no answer)")
    return shown or "(nothing but a line end)"


def cut(text: str, characters: int) -> str:
    """`text` with an ellipsis where it is longer than that."""
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def score(value: float | None) -> str:
    """A value or confidence with three decimals; a dash for none."""
    return "–" if value is None else f"{value:.3f}"
