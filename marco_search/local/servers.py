"""The embedded Postgres and Redis: preparing, starting and stopping them.

A server can't outlive the supervisor that starts it: the kernel stops it then.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import redis

from marco_search.errors import LocalServiceFailed
from marco_search.local.account import Account
from marco_search.local.state import LocalState, ProcessId

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: not between fork and exec
# No secrets, no locale, no PG* variables.
_ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
_LARGEST_LOG = 5 * 2**20  # bytes
_BETWEEN_STARTS_S = 0.2


class Server:
    """One server and its process. Used from the supervisor's main thread only."""

    stop_signal = signal.SIGTERM

    def __init__(self, program: Path, folder: Path, log: Path, account: Account) -> None:
        """`program` is run under `account` with its data in `folder`."""
        self.program, self.folder, self.log, self.account = program, folder, log, account
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False  # it has answered since it was started
        self.starts = 0
        self._started_at = -_BETWEEN_STARTS_S

    @property
    def ended(self) -> bool:
        """Whether it does not run."""
        return self.process is None or self.process.poll() is not None

    @property
    def process_id(self) -> ProcessId | None:
        """Its process, if it runs."""
        return ProcessId.of(self.process.pid) if self.process else None

    def start_if_ended(self, state: LocalState) -> bool:
        """Start it unless it runs or was started just now."""
        if not self.ended or time.monotonic() - self._started_at < _BETWEEN_STARTS_S:
            return False
        self._started_at, self.ready = time.monotonic(), False
        self.starts += 1
        self.start(state)
        return True

    def start(self, state: LocalState) -> None:
        """Start its process; does not wait until it answers."""
        raise NotImplementedError

    def answers(self, state: LocalState) -> bool:
        """Whether it answers a query."""
        raise NotImplementedError

    def stop(self, limit_s: float) -> None:
        """Wait until it is gone; one that takes too long is killed."""
        if self.process is not None:
            try:
                self.process.wait(limit_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def diagnosis(self) -> str:
        """What is known about its end, with the last lines of its log."""
        status = None if self.process is None else self.process.poll()
        lines = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        return f"{self.log.stem} ended with status {status}; end of {self.log}: {' / '.join(lines)}"

    def _spawn(self, arguments: list[str], cwd: Path, stdin: str = "") -> None:
        if self.log.exists() and self.log.stat().st_size > _LARGEST_LOG:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self.log.chmod(0o600)
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=_ENVIRONMENT,
                start_new_session=True,  # Ctrl-C at a terminal does not reach it
                preexec_fn=ending_with(os.getpid(), self.stop_signal),
                **self.account.popen_options,
            )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(stdin.encode())
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already, as its exit status says


class Postgres(Server):
    """Postgres. `program` is the folder of its programs."""

    stop_signal = signal.SIGINT  # sessions are ended, everything committed is on disk

    def prepare(self, password: str, *, reset_password: bool) -> None:
        """Make the data folder if missing; set the password again if it got lost."""
        if not (self.folder / "PG_VERSION").exists():
            self._initdb(password)
        # A crashed server's pid file whose number is now another program's stops Postgres.
        file = self.folder / "postmaster.pid"
        if file.exists() and not _is_postgres(file.read_text().partition("\n")[0]):
            file.unlink()
        if reset_password:
            # Single-user mode needs no password; ours are hexadecimal, so nothing to quote.
            statement = f"ALTER ROLE marco PASSWORD '{password}';\n"
            self._run(["postgres", "--single", "-D", str(self.folder), "postgres"], statement)

    def start(self, state: LocalState) -> None:
        """TCP on loopback only, a password for everyone."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": state.database_port,
            "unix_socket_directories": "",
            "max_connections": 200,
            # After kill -9: one flush of the file system instead of one of each of 1000 files.
            "recovery_init_sync_method": "syncfs",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._spawn([f"{self.program}/postgres", "-D", str(self.folder), *options], Path("/"))

    def answers(self, state: LocalState) -> bool:
        """Whether it answers a query; makes the database the first time."""
        url = state.database_url.removesuffix("/marco") + "/postgres"
        known = "SELECT 1 FROM pg_database WHERE datname = 'marco'"
        try:
            with psycopg.connect(url, connect_timeout=2, autocommit=True) as session:
                if session.execute(known).fetchone() is None:
                    session.execute("CREATE DATABASE marco")
        except psycopg.OperationalError:
            return False
        return True

    def _initdb(self, password: str) -> None:
        """Make the data folder under another name first: half a one is never taken for whole."""
        unfinished = self.folder.with_name("postgres.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        self.account.own(unfinished, 0o700)
        with tempfile.NamedTemporaryFile("w", dir=self.folder.parent) as secret:
            secret.write(password)
            secret.flush()
            self.account.own(Path(secret.name), 0o600)
            # The built-in locale needs none of the system's, and sorts the same everywhere.
            locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            options = ["--auth=scram-sha-256", "--encoding=UTF8", "--no-sync", *locale]
            user = ["-U", "marco", f"--pwfile={secret.name}"]
            self._run(["initdb", "-D", str(unfinished), *user, *options])
        unfinished.rename(self.folder)

    def _run(self, arguments: list[str], stdin: str = "") -> None:
        done = subprocess.run(
            [str(self.program / arguments[0]), *arguments[1:]],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env=_ENVIRONMENT,
            preexec_fn=ending_with(os.getpid(), signal.SIGKILL),
            check=False,
            **self.account.popen_options,
        )
        if done.returncode != 0:
            with self.log.open("a") as log:
                log.write(done.stdout)
            said = done.stdout.strip().splitlines()
            full = [line for line in said if "No space left on device" in line]
            tail = " / ".join(full[:1] or said[-3:])
            raise LocalServiceFailed(f"{arguments[0]} failed: {tail} (all of it: {self.log})")


class Redis(Server):
    """Redis. Its configuration goes through stdin, so that `ps` shows no password."""

    # everysec: Redis hands every write to the kernel before it replies, so a killed Redis loses
    # nothing; only a power cut can lose the last second, and lost messages are published again.
    _OPTIONS = (
        "bind 127.0.0.1\nprotected-mode yes\nport {port}\nrequirepass {password}\n"
        'daemonize no\nlogfile ""\nsave ""\nappendonly yes\nappendfsync everysec\n'
    )

    def start(self, state: LocalState) -> None:
        """With a data folder, which is made if missing."""
        self.folder.mkdir(exist_ok=True)
        self.account.own(self.folder, 0o700)
        options = self._OPTIONS.format(port=state.redis_port, password=state.redis_password)
        self._spawn([str(self.program), "-"], self.folder, options)

    def answers(self, state: LocalState) -> bool:
        """Whether it answers PING and has loaded its data."""
        timeouts = {"socket_timeout": 2, "socket_connect_timeout": 2}
        with redis.Redis.from_url(state.redis_url, **timeouts) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


def free_port(preferred: int) -> int:
    """A free loopback TCP port: `preferred` when it is one (0: any)."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free TCP port on 127.0.0.1")


def ending_with(parent: int, death_signal: signal.Signals) -> Callable[[], None]:
    """What a child runs before its program, so that this signal ends it with its parent."""

    def in_child() -> None:  # after the change of account, which would clear the setting
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if os.getppid() != parent:  # it died before the first line
            os._exit(1)

    return in_child


def _is_postgres(pid: str) -> bool:
    try:
        return Path(f"/proc/{int(pid)}/comm").read_text().strip() == "postgres"
    except (OSError, ValueError):
        return False
