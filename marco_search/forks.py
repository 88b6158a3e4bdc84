"""What a forked process can't go on using: its parent's connections, locks and threads."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Part(Protocol):
    """What holds some."""

    def start_over(self) -> None:
        """Begin with new ones. Those there are belong to the parent, which goes on with them."""


_parts: WeakSet[Part] = WeakSet()


def start_over_in_child(part: Part) -> None:
    """Let `part` start over in every process that is forked from this one."""
    _parts.add(part)


def _start_over() -> None:
    for part in list(_parts):
        part.start_over()


os.register_at_fork(after_in_child=_start_over)
