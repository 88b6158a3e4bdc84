"""The embedded Postgres: making its data folder, starting it, asking whether it answers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psycopg

from marco_search.errors import LocalServiceFailed
from marco_search.local.account import Account
from marco_search.local.process import Command, environment
from marco_search.local_state import LocalState

USER = DATABASE = "marco"


@dataclass(frozen=True, slots=True)
class Postgres:
    """One Postgres under one account. `folder` is its data directory."""

    programs: Path
    folder: Path
    log: Path
    account: Account
    name: str = "postgres"
    # A fast shutdown: open sessions are ended, everything committed is on disk.
    stop_signal: signal.Signals = signal.SIGINT

    def prepare(self, password: str, *, reset_password: bool) -> None:
        """Make the data folder if missing; set the password again if it got lost."""
        if not (self.folder / "PG_VERSION").exists():
            self._initdb(password)
        elif reset_password:
            self._reset_password(password)
        self._drop_stale_pid_file()

    def command(self, state: LocalState) -> Command:
        """How to start it: TCP on loopback only, password for everyone."""
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
        return Command(
            arguments=[str(self.programs / "postgres"), "-D", str(self.folder), *options],
            folder=Path("/"),
            log=self.log,
            death_signal=self.stop_signal,
        )

    def answers(self, state: LocalState) -> bool:
        """Whether it answers a query; makes the database at the first time."""
        url = state.database_url.rpartition("/")[0]
        try:
            with psycopg.connect(f"{url}/postgres", connect_timeout=2, autocommit=True) as session:
                known = session.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)
                ).fetchone()
                if known is None:
                    session.execute(f"CREATE DATABASE {DATABASE}")
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
            who = ["-U", USER, f"--pwfile={secret.name}"]
            self._run(["initdb", "-D", str(unfinished), *who, *options])
        unfinished.rename(self.folder)

    def _reset_password(self, password: str) -> None:
        # Single-user mode needs no password; ours are hexadecimal, so there is nothing to quote.
        statement = f"ALTER ROLE {USER} PASSWORD '{password}';\n"
        self._drop_stale_pid_file()
        self._run(["postgres", "--single", "-D", str(self.folder), "postgres"], statement)

    def _drop_stale_pid_file(self) -> None:
        """Remove a crashed server's pid file when its number now belongs to another program.

        Postgres itself would refuse to start then, which happens after a reboot and in
        containers.
        """
        file = self.folder / "postmaster.pid"
        try:
            pid = int(file.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        try:
            program = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            program = ""
        if program != "postgres":
            file.unlink(missing_ok=True)

    def _run(self, arguments: list[str], stdin: str = "") -> None:
        done = subprocess.run(
            [str(self.programs / arguments[0]), *arguments[1:]],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env=environment(),
            start_new_session=True,  # half a job is worse than a late answer to Ctrl-C
            check=False,
            **self.account.popen_options,
        )
        if done.returncode != 0:
            with self.log.open("a") as log:
                log.write(done.stdout)
            tail = " / ".join(done.stdout.strip().splitlines()[-3:])
            raise LocalServiceFailed(f"{arguments[0]} failed: {tail} (all of it: {self.log})")
