"""Forked processes: replace the parent's connections, locks and threads.

And how a child is made to end with its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet


class Part(Protocol):
    """An object that holds connections, locks or threads."""

    def start_over(self) -> None:
        """Replace them by new ones. The old ones belong to the parent, which still uses them."""


_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None)  # loaded here: not between fork and exec
_parts: WeakSet[Part] = WeakSet()


def start_over_in_child(part: Part) -> None:
    """Have `part` start over in every process that is forked from this one."""
    _parts.add(part)


def _start_over() -> None:
    for part in list(_parts):
        part.start_over()


def ending_with(parent: int, death_signal: signal.Signals) -> Callable[[], None]:
    """What a child runs before its program, so that this signal ends it with its parent."""

    def in_child() -> None:  # after the change of account, which would clear the setting
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a caller may have blocked this one
        if os.getppid() != parent:  # it died before the first line
            os._exit(1)

    return in_child


os.register_at_fork(after_in_child=_start_over)
