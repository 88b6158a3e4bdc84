"""The embedded Redis: its configuration, and asking whether it answers."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import redis

from marco_search.local.account import Account
from marco_search.local.process import Command
from marco_search.local_state import LocalState

# everysec: Redis hands every write to the kernel before it replies, so a killed Redis loses
# nothing; only a power cut can take the last second. `always` would cost a disk flush per
# message for no gain, as a message only points to a row in Postgres and is published again by
# the sweep when it is lost.
_CONFIGURATION = """\
bind 127.0.0.1
protected-mode yes
port {port}
requirepass {password}
daemonize no
logfile ""
save ""
appendonly yes
appendfsync everysec
"""


@dataclass(frozen=True, slots=True)
class Redis:
    """One Redis under one account. `folder` holds its append-only file."""

    program: Path
    folder: Path
    log: Path
    account: Account
    name: str = "redis"
    stop_signal: signal.Signals = signal.SIGTERM  # flushes the append-only file and ends

    def prepare(self) -> None:
        """Make the data folder if missing."""
        self.folder.mkdir(exist_ok=True)
        self.account.own(self.folder, 0o700)

    def command(self, state: LocalState) -> Command:
        """How to start it. The configuration goes through stdin: `ps` shows no password."""
        return Command(
            arguments=[str(self.program), "-"],
            folder=self.folder,
            log=self.log,
            stdin=_CONFIGURATION.format(port=state.redis_port, password=state.redis_password),
            death_signal=self.stop_signal,
        )

    def answers(self, state: LocalState) -> bool:
        """Whether it answers PING and has loaded its data."""
        client = redis.Redis.from_url(state.redis_url, socket_timeout=2, socket_connect_timeout=2)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()
