"""What an error means for a job, and when it is tried again."""

from __future__ import annotations

import errno
from random import Random

from marco_search.errors import BranchFailed, ModelRefused, RuntimeUnavailable
from worker import finish


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_which_errors_are_tried_again() -> None:
    assert finish.is_retryable(RuntimeUnavailable("busy"))
    assert finish.is_retryable(BranchFailed("one"))
    assert not finish.is_retryable(ModelRefused("other"))
    assert not finish.is_retryable(OSError("ours"))
    assert not finish.is_retryable(OSError(errno.ENOENT, "ours"))
    assert not finish.is_retryable(RuntimeError("ours"))
    shortages = MemoryError(), OSError(errno.EMFILE, "files"), OSError(errno.ENOSPC, "disk")
    assert all(map(finish.is_retryable, (*shortages, RuntimeError("can't start new thread"))))


def test_the_traceback_of_a_bug_is_kept() -> None:
    bug = finish.described(raised(KeyError("x")))
    assert (bug["type"], bug["retryable"]) == ("KeyError", False)
    assert "in raised" in bug["traceback"]
    away = finish.described(raised(RuntimeUnavailable("busy")))
    assert away["retryable"]
    assert "traceback" not in away  # its message says what to do


def test_an_error_can_be_stored_whatever_it_says() -> None:
    assert finish.described(ValueError())["message"] == "ValueError"
    assert finish.described(ValueError("a\x00b"))["message"] == "a\\0b"


def test_delays_grow_are_spread_and_end() -> None:
    chance = Random(1)
    for attempts, middle in ((1, 2.0), (2, 4.0), (5, 32.0), (100, 300.0)):
        delays = [finish.delay_s(attempts, chance) for _ in range(200)]
        assert middle * 0.5 <= min(delays) < max(delays) <= middle * 1.5
        assert max(delays) - min(delays) > middle * 0.5
