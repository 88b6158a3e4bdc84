"""Shifts the wall clock of the Python process that finds this on its path.

FAULTS_CLOCK names a file whose first 8 bytes are the shift in seconds (a double). It is
mapped, not read, so the clock jumps at once when another process writes it. Monotonic time
goes on as it was, as it does on a machine whose date is set.
"""

from __future__ import annotations

import datetime
import mmap
import os
import struct
import time
from typing import Any

with open(os.environ["FAULTS_CLOCK"], "rb") as _file:  # noqa: PTH123
    _shift = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)

_time, _time_ns, _datetime = time.time, time.time_ns, datetime.datetime


def shift_s() -> float:
    """Seconds by which this process is ahead."""
    return float(struct.unpack_from("d", _shift)[0])


class ShiftedDatetime(_datetime):  # type: ignore[valid-type, misc]
    """A datetime whose now is shifted."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _datetime.now(tz) + datetime.timedelta(seconds=shift_s())

    @classmethod
    def utcnow(cls) -> Any:
        return _datetime.utcnow() + datetime.timedelta(seconds=shift_s())


time.time = lambda: _time() + shift_s()
time.time_ns = lambda: _time_ns() + int(shift_s() * 1e9)
datetime.datetime = ShiftedDatetime  # type: ignore[misc]
