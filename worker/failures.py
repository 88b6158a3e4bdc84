"""What an error means for the job it happened to.

- retryable (`MarcoError.retryable`): the job goes back to the queue with a growing delay,
  until its attempts are used up; then it is dead
- permanent (any other `MarcoError`): failed, another attempt would end the same
- anything else is a bug of ours: failed

The traceback is kept with each, for whoever looks at a job that was given up.
"""

from __future__ import annotations

import random
import traceback
from typing import Any

from marco_search.errors import MarcoError
from marco_search.text import redacted

FIRST_DELAY_S = 2.0
LONGEST_DELAY_S = 300.0
_MAX_TRACEBACK_CHARS = 20_000


def is_retryable(error: BaseException) -> bool:
    """True if the job may succeed later without any change."""
    return isinstance(error, MarcoError) and error.retryable


def is_bug(error: BaseException) -> bool:
    """True if nobody raised this on purpose."""
    return not isinstance(error, MarcoError)


def described(error: BaseException) -> dict[str, Any]:
    """The error as the job row and the audit log keep it."""
    message = _storable(str(error)) or type(error).__name__
    about: dict[str, Any] = {"type": type(error).__name__, "message": message}
    about["retryable"] = is_retryable(error)
    if error.__traceback__ is not None:
        trace = _storable("".join(traceback.format_exception(error)))
        about["traceback"] = trace[-_MAX_TRACEBACK_CHARS:]
    return about


def _storable(text: str) -> str:
    """`text` as auditors may read it and Postgres can hold it: no secret, NUL or half surrogate."""
    return redacted(text).replace("\x00", "\\0").encode("utf-8", "backslashreplace").decode()


def delay_s(attempts: int, chance: random.Random | None = None) -> float:
    """Seconds until the next attempt: doubling, within half and one and a half times that.

    `attempts` counts those made. The spread keeps jobs that failed together from coming
    back together.
    """
    delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempts - 1, 30))
    return delay * (chance or random).uniform(0.5, 1.5)
