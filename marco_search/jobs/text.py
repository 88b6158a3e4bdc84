"""Checks on text that a caller hands in, before anything else sees it.

What passes here can be stored by Postgres (no NUL, no lone surrogate) and says something.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

from marco_search.errors import InvalidJob

MAX_TEXT_CHARS = 65_536
"""Longest question, text or prompt, in characters. The model's context is usually shorter:
that limit is known only to the runtime and is reported as PromptTooLong."""
MAX_SYSTEM_PROMPT_CHARS = 16_384
MAX_EXPECTED_CHARS = 4_096
MAX_KEY_CHARS = 200
MAX_TENANT_CHARS = 64
_LONGEST_NAME = 60  # of a field or a value that a message repeats


def flaw(text: str, limit: int) -> str | None:
    """Why `text` can't be used (blank, longer than `limit` characters, NUL, lone surrogate).

    None if it can.
    """
    if len(text) > limit:
        return f"too long: {len(text):,} characters, at most {limit:,} are allowed"
    if "\x00" in text:
        return f"holds a NUL character at position {text.index(chr(0))}; remove it"
    lone = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
    if lone is not None:
        return (
            f"not valid Unicode: a lone surrogate at position {lone}; "
            "decode the source as UTF-8 before submitting it"
        )
    if not any(unicodedata.category(c)[0] not in "ZC" for c in text):
        return "empty or blank; give some text"
    return None


def decode_utf8(data: bytes, field: str) -> str:
    """`data` as text, without a leading byte order mark.

    Raises InvalidJob naming `field` and the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InvalidJob(
            field,
            f"not valid UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "save the file as UTF-8",
        ) from None


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The entry of `known` that `word` was most likely meant to be, if any is close."""
    text = str(word)
    if len(text) > _LONGEST_NAME:  # difflib takes seconds for a megabyte
        return None
    close = difflib.get_close_matches(text.casefold(), list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def hint(word: object, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or nothing, to end a message with."""
    close = nearest(word, known)
    return f"; did you mean {close!r}?" if close else ""


def shown(value: object) -> str:
    """`value` for a message: its repr, cut short."""
    if isinstance(value, str | bytes):
        value = value[: _LONGEST_NAME + 1]
    text = repr(value) if not isinstance(value, str) else ascii(value)
    return shortened(text)


def shortened(name: str) -> str:
    """`name` for a message: cut short if it is longer than any of ours."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
