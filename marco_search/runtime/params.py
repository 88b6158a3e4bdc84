"""What a child of a fork carries to the backend besides its sampling parameters.

The frontend language has no way to pass a seed or a request id to one branch, so the fork
program puts a `BranchParams` among the child's variables and our backends read it there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from marco_search.search.branches import Part

VARIABLE = "marco_branch"


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchParams:
    """Per-branch values of one generate call."""

    seed: int  # 0 <= seed < 2**31
    rid: str  # request id, unique per call
    # On time.monotonic(), for the call with all its retries.
    deadline: float = math.inf
    # The executor's text in parts (see `Expansion`), where they are known.
    parts: tuple[Part, ...] = ()


def params_of(executor: Any) -> BranchParams | None:
    """The values that a program put on this executor; None for a program that is not ours."""
    found = executor.variables.get(VARIABLE)
    return found if isinstance(found, BranchParams) else None


def error_value(kind: str, message: str) -> tuple[str, dict[str, Any]]:
    """What a backend returns from `generate` instead of raising.

    An exception inside a fork's thread makes the frontend drop the child or hang.
    `kind` is the name of a class in marco_search.errors.
    """
    return "", {"error": message, "error_type": kind}


def error_in(meta: dict[str, Any]) -> str | None:
    """The error that `error_value` put there, "class: message"; None if there is none."""
    return f"{meta['error_type']}: {meta['error']}" if "error_type" in meta else None
