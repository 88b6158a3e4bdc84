"""The supervisor: one process per MARCO_HOME that owns its Postgres and its Redis.

It starts both, waits until both answer, starts either again when it dies (same port, same
data), and stops both when told to or when nobody needs them. When it dies itself, even by
kill -9, the kernel stops both (see process.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from marco_search.errors import LocalServiceFailed
from marco_search.local import account, binaries, state
from marco_search.local.layout import Layout
from marco_search.local.postgres import Postgres
from marco_search.local.process import free_port
from marco_search.local.redis_server import Redis
from marco_search.local.wakeup import Wakeup, on_signals
from marco_search.local.watched import Watched
from marco_search.local_state import LocalState, ProcessId

_log = logging.getLogger("marco.services")
_START_LIMIT_S = 120.0  # crash recovery of a large database takes its time
_STOP_LIMIT_S = 20.0  # then a server is killed; its data survives that
_PORT_ATTEMPTS = 5
_TICK_S = 0.25


class Supervisor:
    """Runs the services of one home in the calling process, in its main thread."""

    def __init__(self, layout: Layout) -> None:
        """Nothing is started yet."""
        self._layout = layout
        self._state, self._is_new = LocalState(database_password="", redis_password=""), False
        self._watched: tuple[Watched, ...] = ()
        self._stopping = False
        self._users = state.FileLock(layout.lock("users"))

    def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until told to stop. Raises LocalServiceFailed if a server can't be kept up."""
        alone = state.FileLock(self._layout.lock("supervisor"))
        if not alone.try_alone():
            raise LocalServiceFailed(
                f"another supervisor already runs under {self._layout.home}: run `marco down`"
            )
        # What the one before wrote last, now that nobody else writes it.
        self._state, self._is_new = state.read_or_new(self._layout)
        with on_signals(self._request_stop) as wakeup:
            try:
                self._start(wakeup)
                if not self._stopping:
                    on_ready()
                while not self._stopping:
                    wakeup.wait(_TICK_S)
                    self._tick()
            finally:
                self._stop()
                alone.close()
                self._users.close()

    def _request_stop(self) -> None:
        self._stopping = True

    def _start(self, wakeup: Wakeup) -> None:
        self._end_leftovers()
        self._layout.rotate_logs()
        user = account.server_account()
        data = self._layout.data(user)
        programs = binaries.usable_by(user, data)
        log = self._layout.log
        postgres = Postgres(programs.postgres, data / "postgres", log("postgres"), user)
        redis = Redis(programs.redis_server, data / "redis", log("redis"), user)
        # Before the state is written: were it the other way round, an interruption in between
        # would leave a written password that Postgres does not know.
        postgres.prepare(self._state.database_password, reset_password=self._is_new)
        redis.prepare()
        self._watched = (Watched(postgres, user), Watched(redis, user))
        self._state = replace(self._state.stopped(), supervisor=ProcessId.of(os.getpid()))
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self._choose_ports()
            for server in self._watched:
                server.start(self._state)
            self._write()
            if self._wait_ready(wakeup) or self._stopping:
                break
            failed = next(server for server in self._watched if not server.was_ready)
            reason = failed.why()
            _log.warning("attempt %d: %s", attempt, reason)
            self._stop_servers()
            if attempt == _PORT_ATTEMPTS:
                raise LocalServiceFailed(reason)
        self._state = replace(self._state, ready=not self._stopping)
        self._write()
        _log.info("ready")

    def _choose_ports(self) -> None:
        """The ports of last time where they are free. Another program may yet take one first."""
        database = free_port(self._state.database_port)
        redis = free_port(self._state.redis_port)
        self._state = replace(self._state, database_port=database, redis_port=redis)

    def _wait_ready(self, wakeup: Wakeup) -> bool:
        """Whether both answer before either ends."""
        deadline = time.monotonic() + _START_LIMIT_S
        while not self._stopping and time.monotonic() < deadline:
            ready = [server.check_ready(self._state) for server in self._watched]
            if all(ready):
                return True
            if any(server.ended for server in self._watched):
                return False
            wakeup.wait(0.02)
        return False

    def _tick(self) -> None:
        for server in self._watched:
            if server.restart_if_ended(self._state):
                self._write()
        if not self._layout.home.is_dir():
            _log.warning("the home is gone: stopping")
            self._stopping = True
        elif not self._layout.state.exists():
            self._write()
        if not self._layout.keep.exists() and self._users.try_alone():
            # `up` makes `keep` while it holds a share of the lock: look again.
            if self._layout.keep.exists():
                self._users.release()
            else:
                _log.info("nobody needs the services: stopping")
                self._stopping = True  # the lock is kept until the end, so newcomers wait

    def _write(self) -> None:
        pids = {server.name: server.process_id for server in self._watched}
        self._state = replace(self._state, postgres=pids["postgres"], redis=pids["redis"])
        if self._layout.home.is_dir():
            state.write(self._layout, self._state)

    def _stop(self) -> None:
        _log.info("stopping")
        if not self._watched:  # nothing was started, nothing is known about the home
            return
        # First: whoever reads that they are ready would connect to servers that are stopping.
        with contextlib.suppress(OSError):
            self._state = replace(self._state, ready=False)
            self._write()
        self._stop_servers()
        # A full disk must not keep the supervisor alive: a dead one's state is seen as such.
        with contextlib.suppress(OSError):
            if self._layout.home.is_dir():
                state.write(self._layout, self._state.stopped())
        _log.info("stopped")

    def _stop_servers(self) -> None:
        for server in self._watched:
            server.ask_to_stop()
        deadline = time.monotonic() + _STOP_LIMIT_S
        for server in self._watched:
            server.wait_stopped(deadline)

    def _end_leftovers(self) -> None:
        """Wait for servers of an earlier supervisor that are still on their way out."""
        for left in (self._state.postgres, self._state.redis):
            deadline = time.monotonic() + _STOP_LIMIT_S
            while left is not None and left.alive:
                late = time.monotonic() > deadline
                os.kill(left.pid, signal.SIGKILL if late else signal.SIGINT)
                time.sleep(0.05)
