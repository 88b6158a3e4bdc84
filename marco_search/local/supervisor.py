"""The supervisor: one process per MARCO_HOME that owns its Postgres and its Redis.

    python -m marco_search.local.supervisor HOME

It starts both, starts either again when it dies (same port, same data), and stops both on a
signal or when nobody needs them. When it dies itself, even by kill -9, the kernel stops both
(see servers.py). Why it ended is the last line that it prints.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from marco_search.errors import LocalServiceFailed, MarcoError
from marco_search.local import programs, state
from marco_search.local.account import data_folder, server_account
from marco_search.local.servers import Postgres, Redis, Server, free_port
from marco_search.local.state import LocalState, ProcessId

_STOP_S = 20.0  # then a server is killed; its data survives that
_MOST_STARTS = 10  # of a server that has never answered
_TICK_S = 0.25
_STARTING_TICK_S = 0.02
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class Supervisor:
    """The servers of one home, and what is written down about them."""

    def __init__(self, home: Path) -> None:
        """Prepare both servers; nothing is started yet."""
        found = state.read(home)
        if found is not None:  # left by a supervisor that was killed: on their way out
            for server in filter(None, (found.postgres, found.redis)):
                server.end(signal.SIGINT)
        account = server_account()
        data, logs = data_folder(home, account), home / "logs"
        paths = programs.usable_by(account, data)
        self._home = home
        self._postgres = Postgres(paths.postgres, data / "postgres", logs / "postgres.log", account)
        self._redis = Redis(paths.redis_server, data / "redis", logs / "redis.log", account)
        self._servers: tuple[Server, ...] = (self._postgres, self._redis)
        passwords = found or LocalState(
            database_password=secrets.token_hex(16), redis_password=secrets.token_hex(16)
        )
        # Before the state is written: were it the other way round, an interruption in between
        # would leave a written password that Postgres does not know.
        self._postgres.prepare(passwords.database_password, reset_password=found is None)
        me = ProcessId.of(os.getpid())
        self._state = replace(passwords, ready=False, supervisor=me, postgres=None, redis=None)

    def serve(self, users: int) -> None:
        """Run until stopped, or until nobody holds the lock `users`.

        Raises LocalServiceFailed if a server can't be started.
        """
        try:
            while not self._stop_requested():
                self._tick()
                if self._is_unneeded(users):
                    break
        finally:
            self._stop()

    def _stop_requested(self) -> bool:
        """Wait for a tick or a signal. The end of a server is a signal, too."""
        tick = _TICK_S if self._state.ready else _STARTING_TICK_S
        received = signal.sigtimedwait({*_STOP_SIGNALS, signal.SIGCHLD}, tick)
        return received is not None and received.si_signo in _STOP_SIGNALS

    def _tick(self) -> None:
        """Start what does not run, and see whether both answer."""
        if not self._state.ready:
            self._choose_ports()
        for server in self._servers:
            if not self._state.ready and server.ended and server.starts >= _MOST_STARTS:
                raise LocalServiceFailed(server.diagnosis())
            if server.start_if_ended(self._state):
                self._write()
            server.ready = server.ready or server.answers(self._state)
        if not self._state.ready and all(server.ready for server in self._servers):
            self._state = replace(self._state, ready=True)
            self._write()
        elif not (self._home / state.FILE_NAME).exists():
            self._write()

    def _choose_ports(self) -> None:
        """Those of last time where they are free. Another program may yet take one first."""
        if self._postgres.ended:
            port = free_port(self._state.database_port)
            self._state = replace(self._state, database_port=port)
        if self._redis.ended:
            self._state = replace(self._state, redis_port=free_port(self._state.redis_port))

    def _is_unneeded(self, users: int) -> bool:
        if not self._home.is_dir():
            return True
        keep = self._home / "keep"
        if keep.exists() or not state.lock_alone(users):
            return False
        if keep.exists():  # made by `up` while it held a share of the lock
            fcntl.flock(users, fcntl.LOCK_UN)
            return False
        return True  # the lock is kept until the end, so new users wait

    def _write(self) -> None:
        postgres, redis = self._postgres.process_id, self._redis.process_id
        self._state = replace(self._state, postgres=postgres, redis=redis)
        with contextlib.suppress(FileNotFoundError):  # the home is gone: the next tick sees it
            state.write(self._home, self._state)

    def _stop(self) -> None:
        # A full disk must not keep the supervisor alive: a dead one's state is seen as such.
        with contextlib.suppress(OSError):  # first, so that nobody connects any more
            self._state = replace(self._state, ready=False)
            self._write()
        for server in self._servers:
            if server.process is not None:
                server.process.send_signal(server.stop_signal)
        for server in self._servers:
            server.stop(_STOP_S)
        with contextlib.suppress(OSError):
            self._state = replace(self._state, supervisor=None)
            self._write()


def main() -> int:
    """Supervise until stopped. Returns the exit status."""
    home = Path(sys.argv[1])
    with (
        state.open_lock(home / "supervisor.lock") as alone,
        state.open_lock(home / "users.lock") as users,
    ):
        if not state.lock_alone(alone):
            return state.NOT_ALONE
        signal.pthread_sigmask(signal.SIG_BLOCK, {*_STOP_SIGNALS, signal.SIGCHLD})
        try:
            Supervisor(home).serve(users)
        except MarcoError as error:
            traceback.print_exc()
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
