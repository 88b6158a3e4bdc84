"""The hash of a request's payload, computed from the payload as it is stored.

It leaves out what has its default value, tenant and idempotency key. The defaults are those
of the version that wrote the request, so each format has its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

MISSING: Final = object()

FIELDS: Mapping[str, Any] = {
    "priority": "normal", "deadline": None, "expires_in_s": None, "metadata": {},
    "system_prompt": None, "expected": None, "source": "zh", "target": "en",
    "style": "colloquial", "endpoint": None,
}  # fmt: skip
OPTIONS: Mapping[str, Any] = {
    "strategy": "auto", "rollouts": 16, "max_tokens": None, "max_seconds": None,
    "max_new_tokens": 1024, "temperature": None, "seed": 0, "reflection": None, "answers": 3,
    "early_stop": True, "exploration": None, "branching": None, "width": None,
    "selection": None, "value": None,
}  # fmt: skip
Defaults = tuple[Mapping[str, Any], Mapping[str, Any]]
DEFAULTS: Defaults = (FIELDS, OPTIONS)
DEFAULTS_3: Defaults = (
    FIELDS, {**OPTIONS, "reward": None, "verifier": None, "profile": None, "overrides": {}},
)  # fmt: skip
_WHOLE_FROM = 10**16
"""From here on Python writes 1e+16, and jsonb the same number without an exponent."""


def hashes(
    payload: str, expected: str | None, fields: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[str]:
    """The hashes (hex) that a stored payload may have: long whole numbers may have been floats.

    Raises ValueError for what is not an object.
    """
    yield _hash(json.loads(payload), expected, fields, options)
    yield _hash(json.loads(payload, parse_int=_as_float), expected, fields, options)


def _as_float(digits: str) -> float | int:
    value = int(digits)
    return float(value) if abs(value) >= _WHOLE_FROM else value


def _hash(
    data: Any, expected: str | None, fields: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    if not isinstance(data, dict):
        raise ValueError("not an object")
    kept = _without(data | {"expected": expected}, fields)
    given = data.get("options")
    kept["options"] = _without(given, options) if isinstance(given, dict) else given
    if not kept["options"]:
        del kept["options"]
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _without(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if v != defaults.get(k, MISSING)}
