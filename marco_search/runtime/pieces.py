"""Gives each token its part of a completion's text.

A server shows each token decoded alone (a piece) and the text of all. The two differ where a
token holds a part of a character (its piece has U+FFFD), where the tokenizer drops a space at
the edge of a token that stands alone, and at special tokens, which have a name and no text.
"""

from __future__ import annotations

import re
from itertools import islice, takewhile

from marco_search.errors import BranchFailed

BROKEN = "\ufffd"

_LOOK_AHEAD = 16  # tokens without a text that may stand between two with one
# <|im_end|>, </s>, [PAD]: skipped in a text unless the text has it.
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")


def token_texts(pieces: list[str], whole: str, *, more: bool = False) -> list[str]:
    """One text for each piece; joined they are `whole`.

    With `more` (`whole` ends in a stop text) the pieces may go on after it. A character's text
    stands at the token that completes it. Raises BranchFailed if the pieces are of another text.
    """
    joined = "".join(pieces)
    if joined != whole and not (more and joined.startswith(whole)):
        pieces = _aligned(pieces, whole, more)
        joined = "".join(pieces)
        if joined != whole and not (more and joined.startswith(whole)):
            raise _other_text()
    return pieces


def _aligned(pieces: list[str], whole: str, more: bool) -> list[str]:
    texts: list[str] = []
    at = 0
    while len(texts) < len(pieces):
        i = len(texts)
        piece = pieces[i]
        if at == len(whole) and more:
            texts.append(piece)
        elif BROKEN in piece:
            run = list(takewhile(lambda p: BROKEN in p, islice(pieces, i, None)))
            after = i + len(run)
            found = _broken(whole, at, run, pieces[after : after + _LOOK_AHEAD])
            texts += found
            at += sum(map(len, found))
        else:
            texts.append(_one(whole, at, piece, more))
            at += len(texts[-1])
    return texts


def _one(whole: str, at: int, piece: str, more: bool) -> str:
    """The text of a piece without broken characters, which begins at `at`."""
    if whole.startswith(piece, at) or (more and piece.startswith(whole[at:])):
        return piece
    core = piece.strip(" ")
    start = at + whole.startswith(" ", at)
    for begin in (start, at):
        if core and whole.startswith(core, begin):
            return whole[at : begin + len(core)]
    if core and not _SPECIAL.fullmatch(core):
        raise _other_text()
    return ""


def _broken(whole: str, at: int, run: list[str], following: list[str]) -> list[str]:
    """The texts of a run of broken pieces: all of it at the last one, unless they are meant so."""
    if whole.startswith("".join(run), at):
        return run  # a U+FFFD that the model wrote
    if whole.startswith(BROKEN, at):  # characters that were never completed
        end = next(i for i in range(at, len(whole) + 1) if whole[i : i + 1] != BROKEN)
    else:
        known = (p for p in following if p and not _unseen(p, whole, at))
        neighbour = next(known, "")
        end = whole.find(neighbour.strip(" ") or neighbour, at + 1) if neighbour else len(whole)
        if end < 0:
            raise _other_text()
    return [""] * (len(run) - 1) + [whole[at:end]]


def _unseen(piece: str, whole: str, at: int) -> bool:
    return _SPECIAL.fullmatch(piece) is not None and whole.find(piece, at) < 0


def _other_text() -> BranchFailed:
    return BranchFailed("the tokens' text does not make up the completion's text")
