"""What the supervisor of the embedded services has written down, and whether it still holds.

The file is MARCO_HOME/services.json, mode 0600: it holds both passwords. marco_search/local writes
it; everything that connects reads it through `locations`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from marco_search.errors import LocalServiceFailed

FILE_NAME = "services.json"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, told apart from a later one with the same number."""

    pid: int
    started: int  # clock ticks between boot and its start, /proc/PID/stat field 22
    boot: str  # /proc/sys/kernel/random/boot_id

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has `pid` now; None when there is none or it is a zombie."""
        try:
            # The name in parentheses may hold anything, so count from the last one.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (OSError, ValueError):
            return None
        if len(fields) < 20 or fields[0] in "ZX":
            return None
        return cls(pid, int(fields[19]), boot)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessId.of(self.pid) == self


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalState:
    """Ports and passwords last as long as the home; processes while they run."""

    database_password: str = field(repr=False)
    redis_password: str = field(repr=False)
    database_port: int = 0  # 0: none chosen yet
    redis_port: int = 0
    ready: bool = False
    supervisor: ProcessId | None = None
    postgres: ProcessId | None = None
    redis: ProcessId | None = None

    @property
    def supervised(self) -> bool:
        """Whether the supervisor that wrote this is still alive."""
        return self.supervisor is not None and self.supervisor.alive

    @property
    def running(self) -> bool:
        """Whether the services were started, answered, and are still looked after."""
        return self.ready and self.supervised

    @property
    def database_url(self) -> str:
        """URL of the embedded Postgres, with its password."""
        password, port = self.database_password, self.database_port
        return f"postgresql://marco:{password}@127.0.0.1:{port}/marco"

    @property
    def redis_url(self) -> str:
        """URL of the embedded Redis, with its password."""
        return f"redis://:{self.redis_password}@127.0.0.1:{self.redis_port}/0"

    def stopped(self) -> LocalState:
        """The same home with nothing running."""
        return replace(self, ready=False, supervisor=None, postgres=None, redis=None)

    def to_json(self) -> str:
        """Text of the state file."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> LocalState:
        """The inverse of `to_json`. Raises ValueError or TypeError on anything else."""
        fields = json.loads(text)
        for name in ("supervisor", "postgres", "redis"):
            if fields[name] is not None:
                fields[name] = ProcessId(**fields[name])
        return cls(**fields)


def read(home: Path) -> LocalState | None:
    """The state of the services under `home`; None when there never were any.

    Raises LocalServiceFailed when the file is another user's. One that can't be understood
    counts as none: the next start writes it anew.
    """
    file = home / FILE_NAME
    try:
        return LocalState.from_json(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise LocalServiceFailed(
            f"{file} belongs to another user: work as that user, or set MARCO_HOME to a folder "
            "of yours"
        ) from None
    except (ValueError, TypeError, KeyError):
        return None
