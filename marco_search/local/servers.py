"""The embedded Postgres and Redis: preparing, starting and stopping them.

A server can't outlive the supervisor that starts it: the kernel stops it then.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import psycopg
import redis

from marco_search.errors import LocalServiceFailed
from marco_search.local.programs import Account

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: not between fork and exec
_MOST_STARTS = 10  # of a server that has never answered
_STOP_S = 20.0
# No secrets, no locale, no PG* variables.
_ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


class Server:
    """One server and its process. Used from the supervisor's main thread only."""

    name: ClassVar[str]
    stop_signal = signal.SIGTERM

    def __init__(
        self, program: Path, url: str, account: Account, lock: int, data: Path, logs: Path
    ) -> None:
        """`program` is run under `account`; all its processes hold the open file `lock`."""
        self.program, self.url, self.account, self.lock = program, url, account, lock
        self.folder, self.log = data / self.name, logs / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._starts, self._answered = 0, False

    def attend(self) -> bool:
        """Start it if it does not run. Whether it has ever answered. Raises LocalServiceFailed."""
        if self.process is None or self.process.poll() is not None:
            if not self._answered:  # until then another program may take the port first
                if self._starts == _MOST_STARTS:
                    raise LocalServiceFailed(self.diagnosis())
                self._starts += 1
                port = urlsplit(self.url).port or 0
                self.url = self.url.replace(f"127.0.0.1:{port}/", f"127.0.0.1:{free_port(port)}/")
            self.start()
        self._answered = self._answered or self.answers()
        return self._answered

    def start(self) -> None:
        """Start its process; does not wait until it answers."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it answers a query."""
        raise NotImplementedError

    def signal_stop(self) -> None:
        """Ask it to end."""
        if self.process is not None:
            self.process.send_signal(self.stop_signal)

    def wait(self) -> None:
        """Wait until it is gone; one that takes too long is killed, which its data survives."""
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_S)
            self.process.kill()
            self.process.wait()

    def diagnosis(self) -> str:
        """What is known about its end, with the last lines of its log."""
        status = self.process and self.process.poll()
        lines = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        return f"{self.log.stem} ended with status {status}; end of {self.log}: {' / '.join(lines)}"

    def run(self, *arguments: str, stdin: str = "") -> subprocess.Popen[bytes]:
        """Start a program as its process, with `stdin`; its output goes to the log."""
        with self.log.open("ab") as log:
            self.log.chmod(0o600)
            self.process = process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder.parent,
                env=_ENVIRONMENT,
                start_new_session=True,  # Ctrl-C at a terminal does not reach it
                preexec_fn=ending_with(os.getpid(), self.stop_signal),
                pass_fds=[self.lock],
                **self.account.popen_options,
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # as its status says, it ended
            process.stdin.write(stdin.encode())
        return process


class Postgres(Server):
    """Postgres."""

    name = "postgres"
    stop_signal = signal.SIGINT  # sessions are ended, everything committed is on disk

    def prepare(self, *, reset_password: bool) -> None:
        """Make the data folder if missing; set the password again if it got lost."""
        password = urlsplit(self.url).password
        set_password = f"ALTER ROLE marco PASSWORD '{password}';\n"  # hexadecimal
        if not (self.folder / "PG_VERSION").exists():
            # Under another name first: half a folder is never taken for a whole one.
            unfinished = self.folder.with_name("postgres.new")
            self._initdb(unfinished)
            self._single_user(unfinished, set_password + "CREATE DATABASE marco;\n", "-F")
            unfinished.rename(self.folder)
        elif reset_password:
            self._single_user(self.folder, set_password)
        # Left by a crashed server, as the lock says: where its number is another program's now,
        # it would stop Postgres.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def start(self) -> None:
        """TCP on loopback only, a password for everyone."""
        settings = (
            "--listen_addresses=127.0.0.1",
            f"--port={urlsplit(self.url).port}",
            "--unix_socket_directories=",
            "--max_connections=200",
            # After kill -9: one flush of the file system instead of one of each of 1000 files.
            "--recovery_init_sync_method=syncfs",
            "--timezone=UTC",
            "--log_timezone=UTC",
        )
        self.run(str(self.program), "-D", str(self.folder), *settings)

    def answers(self) -> bool:
        """Whether it answers a query. Raises LocalServiceFailed when it never will."""
        state = self.folder / "postmaster.pid"
        try:
            # Before it says so, another program's Postgres may answer at the port.
            if not state.read_text(errors="replace").rstrip().endswith("\nready"):
                return False
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise LocalServiceFailed(
                    "Postgres refuses the password in services.json: delete that file, and the "
                    "next start sets a new one"
                ) from None
            if os.strerror(errno.ENOSPC) in str(error):  # it runs, and lets nobody in
                raise LocalServiceFailed(f"Postgres: {error}") from None
            if os.strerror(errno.ENETUNREACH) in str(error):
                raise LocalServiceFailed(
                    "127.0.0.1 can't be reached: start the loopback interface (`ip link set lo up`)"
                ) from None
            return False
        except OSError:  # it is not written yet
            return False
        return True

    def _initdb(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.account.own(folder, 0o700)
        # The built-in locale needs none of the system's, and sorts the same everywhere.
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        access = ["-U", "marco", "--auth-host=scram-sha-256", "--auth-local=reject"]
        options = ["--encoding=UTF8", "--no-sync", "--no-clean", "--no-instructions"]
        initdb = str(self.program.with_name("initdb"))
        self._finish(initdb, "-D", str(folder), *access, *options, *locale)

    def _single_user(self, folder: Path, statements: str, *options: str) -> None:
        """Run statements, one a line, without a server and without a password."""
        # What fails ends it, and is not written to the log.
        safe = ["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic"]
        words = [str(self.program), "--single", "-D", str(folder), *safe, *options, "postgres"]
        self._finish(*words, stdin=statements)

    def _finish(self, *arguments: str, stdin: str = "") -> None:
        if self.run(*arguments, stdin=stdin).wait() != 0:
            raise LocalServiceFailed(self.diagnosis())


class Redis(Server):
    """Redis. Its configuration goes through stdin, so that `ps` shows no password."""

    name = "redis"
    # everysec: Redis hands every write to the kernel before it replies, so a killed Redis loses
    # nothing; only a power cut can lose the last second, and lost messages are published again.
    _OPTIONS = (
        "bind 127.0.0.1\nprotected-mode yes\nport {port}\nrequirepass {password}\n"
        'daemonize no\nlogfile ""\ndir redis\nsave ""\nappendonly yes\nappendfsync everysec\n'
    )

    def start(self) -> None:
        """With a data folder, which is made if missing."""
        self.folder.mkdir(exist_ok=True)
        self.account.own(self.folder, 0o700)
        parts = urlsplit(self.url)
        options = self._OPTIONS.format(port=parts.port, password=parts.password)
        self.run(str(self.program), "-", stdin=options)

    def answers(self) -> bool:
        """Whether it answers PING and has loaded its data."""
        timeouts = {"socket_timeout": 2, "socket_connect_timeout": 2}
        client = redis.Redis.from_url(self.url, **timeouts)
        with contextlib.suppress(redis.RedisError), client:
            return bool(client.ping())
        return False


def free_port(preferred: int) -> int:
    """A free loopback TCP port: `preferred` when it is one (0: any)."""
    for port in (preferred, 0):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as probe:
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
