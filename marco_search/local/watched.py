"""One server process: start, is it ready, start again after a death, stop."""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from pathlib import Path
from typing import Protocol

from marco_search.errors import LocalServiceFailed
from marco_search.local.account import Account
from marco_search.local.process import Command, spawn
from marco_search.local_state import LocalState, ProcessId

_log = logging.getLogger("marco.services")
_SETTLED_S = 10.0  # having run this long, the next death counts as the first
_DEATHS_LIMIT = 10  # in a row, then restarting is no use
_LONGEST_PAUSE_S = 5.0


class Server(Protocol):
    """What Postgres and Redis have in common here."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def log(self) -> Path:
        """Where its output goes."""
        ...

    @property
    def stop_signal(self) -> signal.Signals:
        """Ends it cleanly."""
        ...

    def command(self, state: LocalState) -> Command:
        """How to start it."""
        ...

    def answers(self, state: LocalState) -> bool:
        """Whether it answers a query."""
        ...


class Watched:
    """A server and its process. Used from the supervisor's main thread only."""

    def __init__(self, server: Server, account: Account) -> None:
        """Nothing is started yet."""
        self._server = server
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0  # time.monotonic()
        self._retry_at = 0.0
        self._deaths = 0
        self.process_id: ProcessId | None = None
        self.was_ready = False

    @property
    def name(self) -> str:
        """`postgres` or `redis`."""
        return self._server.name

    @property
    def ended(self) -> bool:
        """Whether it was started and is gone."""
        return self._process is not None and self._process.poll() is not None

    def start(self, state: LocalState) -> None:
        """Start the process; does not wait until it answers."""
        self._process = spawn(self._server.command(state), self._account)
        self._started_at = time.monotonic()
        self._retry_at = 0.0
        self.process_id = ProcessId.of(self._process.pid)
        self.was_ready = False

    def check_ready(self, state: LocalState) -> bool:
        """Whether it has answered since it was started."""
        self.was_ready = self.was_ready or self._server.answers(state)
        return self.was_ready

    def restart_if_ended(self, state: LocalState) -> bool:
        """Start it again if it died, after a pause that grows. True when it was started.

        Raises LocalServiceFailed when it keeps dying.
        """
        if not self.ended:
            return False
        now = time.monotonic()
        if not self._retry_at:
            _log.warning("%s", self.why())
            self._deaths = 1 if now - self._started_at > _SETTLED_S else self._deaths + 1
            if self._deaths > _DEATHS_LIMIT:
                raise LocalServiceFailed(self.why())
            self._retry_at = now + min(0.1 * 2 ** (self._deaths - 1), _LONGEST_PAUSE_S) - 0.1
        if now < self._retry_at:
            return False
        self.start(state)
        _log.info("%s started again", self.name)
        return True

    def ask_to_stop(self) -> None:
        """Send the signal for a clean stop."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self._server.stop_signal)

    def wait_stopped(self, deadline: float) -> None:
        """Wait until it is gone; past `deadline` (time.monotonic()) it is killed."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.warning("%s does not stop: killing it", self.name)
            self._process.kill()
            self._process.wait()
        self._process, self.process_id = None, None

    def why(self) -> str:
        """What is known about its end, with the last lines of its log."""
        status = None if self._process is None else self._process.poll()
        happened = "does not answer" if status is None else f"ended with status {status}"
        try:
            lines = self._server.log.read_text(errors="replace").strip().splitlines()[-3:]
        except OSError:
            lines = []
        return f"{self.name} {happened}; end of {self._server.log}: {' / '.join(lines)}"
