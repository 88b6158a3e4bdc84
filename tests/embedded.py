"""The processes of the embedded services of one MARCO_HOME, to watch them and to kill them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from marco_search.local import ServiceUrls, local_services

_PROGRAMS = {"postgres": "postgres", "valkey-server": "redis"}


@dataclass(frozen=True, slots=True)
class Process:
    """One process, distinguished from a later one with the same number."""

    pid: int
    started: str  #: clock ticks between boot and its start

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return _process(self.pid) == self


def up(home: Path) -> ServiceUrls:
    """Start them unless they run, and let them stay, as `marco up` does."""
    with local_services(home, stay=True) as urls:
        return urls


def services(home: Path) -> dict[str, Process]:
    """What runs of "supervisor", "postgres" and "redis"."""
    words = f"marco_search.local.supervisor\0{home.absolute()}\0"
    found = {}
    for pid in processes(words):
        if (supervisor := _process(pid)) is not None:
            found["supervisor"] = supervisor
            for child in children(pid):
                name = _PROGRAMS.get(Path(f"/proc/{child}/comm").read_text().strip())
                if name is not None and (process := _process(child)) is not None:
                    found[name] = process
    return found


def processes(words: str) -> list[int]:
    """Pids of processes with `words` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if os.fsencode(words) in command:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def children(pid: int) -> list[int]:
    """Pids of the children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _process(pid: int) -> Process | None:
    try:
        # The name in parentheses may hold anything, so count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else Process(pid, fields[19])
