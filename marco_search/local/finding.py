"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it is well, what was seen, and what to do if it is not well.

    Holds no password.
    """

    name: str
    ok: bool
    detail: str
    mend: str
