"""What takes the place of a redacted job's texts.

A text becomes `[redacted 0123456789abcdef]`, the digits being the first of its hash under the job's
salt, which is then destroyed: equal texts of a job stay equal, so its votes can still be counted,
and nobody can try whether a text was the one. Token ids become -1. Of a token's text stays whether
it ends a line, since rewards are computed line by line. What is redacted once stays the same.
"""

from __future__ import annotations

import hmac
import json
import re
import struct
from collections.abc import Mapping
from typing import Any

from marco_search.audit.canonical import unpack_ints, unpack_texts
from marco_search.audit.proofs import Kind

EVENT = "redacted"
"""What is logged."""
NO_TOKEN = -1
_DROPPED = ("idempotency_key",)
"""Null afterwards: the key may name another request."""
_KEPT: Mapping[str, frozenset[str]] = {
    "payload": frozenset((
        "kind", "options", "priority", "deadline", "source", "target", "style",
        "endpoint",
    )),
    "plan": frozenset(("config", "model", "revision", "profile")),
    "last_error": frozenset(("type",)),
    "detail": frozenset((
        "worker", "workers", "host", "why", "type", "after", "restart_of", "restarted_as", "month",
        "manifest", "by", "reason", "root", "commitments",
    )),
}  # fmt: skip
"""Members of JSON columns whose value is kept; of others only numbers and truth values are."""
_PLACEHOLDER = re.compile(r"\[redacted [0-9a-f]{16}\]")
_IN_TOKENS = re.compile(rf"({_PLACEHOLDER.pattern})?\n*")


def replaced(name: str, value: Any, salt: bytes | None) -> Any:
    """What a column holds afterwards. Without a salt: only what was redacted stays the same."""
    if value is None or name in _DROPPED:
        return None
    if isinstance(value, str):
        return _text(value, salt)
    if isinstance(value, dict):
        return {k: v if k in _KEPT[name] else _member(v, salt) for k, v in value.items()}
    if isinstance(value, list):
        return [NO_TOKEN] * len(value)
    return NO_TOKEN


def replaced_node(token_texts: list[str], text: str, salt: bytes) -> tuple[list[str], str]:
    """The texts of a node's tokens afterwards, and the node's, which they still make up."""
    placeholder = _text(text, salt)
    lines = ["\n" if "\n" in each else "" for each in token_texts]
    if lines:
        lines[0] = placeholder + lines[0]
    return lines, "".join(lines) or placeholder


def left(kind: Kind, row: bytes) -> str | None:
    """The first column that holds what no redaction leaves; None: all is redacted."""
    name = None
    try:
        values = kind.reader.read(row)
        for name in list(kind.columns)[len(kind.columns) - kind.texts :]:
            if not _is_redacted(name, kind.columns[name], values[name]):
                return name
    except (ValueError, struct.error, RecursionError):
        return name or "a column"  # not readable
    return None


def _is_redacted(name: str, of_type: str, value: Any) -> bool:
    if value is None:
        return True
    if of_type == "jsonb":
        read = json.loads(value)
        return isinstance(read, dict) and bool(replaced(name, read, None) == read)
    if of_type == "int4[]":
        return set(unpack_ints(value)) <= {NO_TOKEN}
    if of_type == "text[]":
        count = int.from_bytes(value[12:16], "big") if len(value) >= 16 else 0
        texts = unpack_texts(value, count) if count else []
        return all(_IN_TOKENS.fullmatch(text.decode()) for text in texts)
    if of_type == "text":
        return name not in _DROPPED and _IN_TOKENS.fullmatch(value) is not None
    return bool(value == NO_TOKEN)


def _member(value: Any, salt: bytes | None) -> Any:
    if isinstance(value, str):
        return _text(value, salt)
    return type(value)() if isinstance(value, (dict, list)) else value


def _text(text: str, salt: bytes | None) -> str:
    if _PLACEHOLDER.fullmatch(text):
        return text
    if salt is None:
        return ""
    return f"[redacted {hmac.digest(salt, text.encode(), 'sha256').hex()[:16]}]"
