"""The supervisor: one process per MARCO_HOME that owns its Postgres and its Redis.

    python -m marco_search.local.supervisor HOME LOCK

It starts both, and either again when it dies (same port, same data), as long as they are needed,
as marco_search.local describes; LOCK is the open supervisor.lock. Killed, it takes both with it.
Why it ended is the last line that it prints.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psycopg

from marco_search import local
from marco_search.errors import LocalServiceFailed
from marco_search.forks import ending_with
from marco_search.local import ServiceUrls, programs

_MOST_FAILURES = 10  # of servers that have never answered
_STOP_S = 20.0
# No secrets, no locale, no PG* variables.
_ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
# What keeps a Postgres that is ready from ever letting us in, and what to do.
_REASONS = {
    "password authentication failed": "Postgres refuses the password in services.json: delete "
    "that file, and the next start sets a new one",
    "No space left on device": "Postgres lets nobody in, as the disk is full: make room",
    "Network is unreachable": "127.0.0.1 can't be reached: start the loopback interface "
    "(`ip link set lo up`)",
}


class _Server:
    """One server. All its processes hold `lock`."""

    stop_signal = signal.SIGTERM
    process: subprocess.Popen[bytes]

    def __init__(self, program: Path, url: str, folder: Path, logs: Path, lock: int) -> None:
        self.program, self.url, self.folder, self.lock = program, _at_free_port(url), folder, lock
        self.log = logs / f"{folder.name}.log"

    def run(self, *words: object, stdin: str = "") -> subprocess.Popen[bytes]:
        """Start a program as its process, with `stdin`; its output goes to the log."""
        with self.log.open("ab") as log, os.fdopen(os.memfd_create("stdin"), "w+") as given:
            self.log.chmod(0o600)
            given.write(stdin)
            given.seek(0)
            self.process = subprocess.Popen(
                [str(word) for word in words],
                stdin=given,
                stdout=log,
                stderr=log,
                cwd=self.folder.parent,
                env=_ENVIRONMENT,
                start_new_session=True,  # Ctrl-C at a terminal does not reach it
                preexec_fn=ending_with(os.getpid(), self.stop_signal),
                pass_fds=[self.lock],
                **programs.as_servers(),
            )
        return self.process

    def failure(self) -> LocalServiceFailed:
        """What is known about its end, with the last lines of its log."""
        end = " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])
        status = f"{self.log.stem} ended with status {self.process.poll()}"
        return LocalServiceFailed(f"{status}; end of {self.log}: {end}")


class Postgres(_Server):
    """Postgres: TCP on loopback only, a password for everyone."""

    stop_signal = signal.SIGINT  # sessions are ended, everything committed is on disk

    def prepare(self, *, reset_password: bool) -> None:
        """Make the data folder if missing; set the password again if it got lost."""
        set_password = f"ALTER ROLE marco PASSWORD '{urlsplit(self.url).password}';\n"
        # Left by a crash, as the lock says: Postgres stops if its number is another program's now.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)
        if not (self.folder / "PG_VERSION").exists():
            # Under another name first: half a folder is never taken for a whole one.
            new = self.folder.with_name("postgres.new")
            self._initdb(new)
            self._execute(new, set_password + "CREATE DATABASE marco;\n", "-F")
            new.rename(self.folder)
        elif reset_password:
            self._execute(self.folder, set_password)

    def start(self) -> None:
        """Start its process; does not wait until it answers."""
        settings = (
            "--listen_addresses=127.0.0.1",
            f"--port={urlsplit(self.url).port}",
            "--unix_socket_directories=",
            "--max_connections=200",
            # After kill -9: one flush of the file system instead of one of each of 1000 files.
            "--recovery_init_sync_method=syncfs",
        )
        self.run(self.program, "-D", self.folder, *settings)

    def answers(self) -> bool:
        """Whether it answers a query. Raises LocalServiceFailed when it never will."""
        state = self.folder / "postmaster.pid"
        try:
            # Before it says so, another program's Postgres may answer at the port.
            if not state.read_bytes().rstrip().endswith(b"\nready"):
                return False
            psycopg.connect(self.url, connect_timeout=2).close()
        except (FileNotFoundError, psycopg.OperationalError) as error:
            for words, reason in _REASONS.items():
                if words in str(error):
                    raise LocalServiceFailed(reason) from None
            return False
        return True

    def _initdb(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        programs.make(folder)
        # The built-in locale needs none of the system's, and sorts the same everywhere.
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        access = ["-U", "marco", "--auth-host=scram-sha-256", "--auth-local=reject"]
        options = ["--encoding=UTF8", "--no-sync", "--no-clean", "--no-instructions"]
        words = [self.program.with_name("initdb"), "-D", folder, *access, *options, *locale]
        if self.run(*words).wait() != 0:
            raise self.failure()

    def _execute(self, folder: Path, statements: str, *options: str) -> None:
        """Run statements, one a line, without a server and without a password."""
        # What fails ends it, and is not written to the log.
        safe = ["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic"]
        words = "--single", "-D", folder, *safe, *options, "postgres"
        if self.run(self.program, *words, stdin=statements).wait() != 0:
            raise self.failure()


class Redis(_Server):
    """Redis. Its configuration goes through stdin, so that `ps` shows no password."""

    # everysec: Redis hands every write to the kernel before it replies, so a killed Redis loses
    # nothing; only a power cut can lose the last second, and lost messages are published again.
    _OPTIONS = (
        "bind 127.0.0.1\nprotected-mode yes\nport {0.port}\nrequirepass {0.password}\n"
        'daemonize no\nlogfile ""\ndir redis\nsave ""\nappendonly yes\nappendfsync everysec\n'
    )

    def start(self) -> None:
        """Start its process, with a data folder, which is made if missing."""
        programs.make(self.folder)
        self.run(self.program, "-", stdin=self._OPTIONS.format(urlsplit(self.url)))

    def answers(self) -> bool:
        """Whether it answers PING and has loaded its data; `import redis` would take too long."""
        url = urlsplit(self.url)
        address = url.hostname, url.port
        with contextlib.suppress(OSError), socket.create_connection(address, 2) as to:
            to.sendall(f"AUTH {url.password}\r\nPING\r\nQUIT\r\n".encode())
            return b"+PONG" in to.makefile("rb").read()
        return False


def supervise(home: Path, lock: int) -> None:
    """Run the services as long as they are needed. Raises LocalServiceFailed."""
    data, logs, known = programs.data_folder(home), home / "logs", local.read_urls(home)
    site = programs.reachable(data)
    urls = known or ServiceUrls(
        f"postgresql://marco:{secrets.token_hex(16)}@127.0.0.1:0/marco",
        f"redis://:{secrets.token_hex(16)}@127.0.0.1:0/0",
    )
    postgres = Postgres(site / programs.POSTGRES, urls.database_url, data / "postgres", logs, lock)
    # Before the URLs are written: an interruption leaves no password that Postgres does not know.
    postgres.prepare(reset_password=known is None)
    servers = postgres, Redis(site / programs.REDIS, urls.redis_url, data / "redis", logs, lock)
    for server in servers:
        server.start()
    try:
        with (home / local.USERS_NAME).open("r+") as users, contextlib.ExitStack() as running:
            answered, failures = False, 0
            while _needed(home, users):
                for server in servers:
                    if server.process.poll() is not None:
                        if not answered:  # another program may have been quicker to take the port
                            if (failures := failures + 1) == _MOST_FAILURES:
                                raise server.failure()
                            server.url = _at_free_port(server.url)
                        server.start()
                answered = answered or all(server.answers() for server in servers)
                urls = ServiceUrls(*(server.url for server in servers))
                if answered and not (local.is_running(home) and local.read_urls(home) == urls):
                    running.enter_context(local.write_urls(home, urls))
    finally:
        for server in servers:  # which the kernel does, too, were this process killed
            server.process.send_signal(server.stop_signal)
        for server in servers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(_STOP_S)
            server.process.kill()  # data survives that


def _needed(home: Path, users: IO[str]) -> bool:
    """Whether the services are needed, a moment later."""
    time.sleep(local.TICK_S)
    if not os.path.samestat(os.fstat(users.fileno()), (home / local.USERS_NAME).stat()):
        return False  # the home was moved away, and made anew
    users.seek(0)
    if word := users.read().strip():
        return word == local.KEEP
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the end: nobody comes any more
        return False
    return True


def _at_free_port(url: str) -> str:
    """The URL with a loopback port that is free, the same if it is."""
    port = urlsplit(url).port or 0
    for wanted in (port, 0):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", wanted)) as probe:
            return url.replace(f"127.0.0.1:{port}/", f"127.0.0.1:{probe.getsockname()[1]}/")
    raise OSError("no free TCP port on 127.0.0.1")


if __name__ == "__main__":
    with local.usable(Path(sys.argv[1])):
        supervise(Path(sys.argv[1]), int(sys.argv[2]))
