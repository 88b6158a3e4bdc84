"""The supervisor: one process per MARCO_HOME that owns its Postgres and its Redis.

    python -m marco_search.local.supervisor HOME LOCK

It starts both, starts either again when it dies (same port, same data), and stops both when it
is told to or when nobody needs them any more, as the files say that control.py describes; LOCK
is the open supervisor.lock. When it dies itself, even by kill -9, the kernel stops both
(servers.py). Why it ended is the last line that it prints.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sys
import time
import traceback
from pathlib import Path
from typing import IO

from marco_search.errors import MarcoError
from marco_search.local import control, programs
from marco_search.local.control import ServiceUrls
from marco_search.local.programs import data_folder, server_account
from marco_search.local.servers import Postgres, Redis, Server


def supervise(home: Path, lock: int) -> None:
    """Run the services until told to stop, or until nobody needs them.

    Raises LocalServiceFailed if a server can't be started.
    """
    servers = _prepared(home, lock)
    with (home / control.USERS_NAME).open("r+") as users:
        try:
            with contextlib.ExitStack() as running:
                while _needed(home, users, lock):
                    answered = [server.attend() for server in servers]
                    urls = ServiceUrls(*(server.url for server in servers))
                    told = control.is_running(home) and control.read_urls(home) == urls
                    if all(answered) and not told:
                        running.enter_context(control.write_urls(home, urls))
        finally:
            for server in servers:
                server.signal_stop()
            for server in servers:
                server.wait()


def _prepared(home: Path, lock: int) -> tuple[Server, Server]:
    account = server_account()
    data, logs = data_folder(home, account), home / "logs"
    postgres_program, redis_program = programs.usable_by(account, data)
    found = control.read_urls(home)
    urls = found or ServiceUrls(
        f"postgresql://marco:{secrets.token_hex(16)}@127.0.0.1:0/marco",
        f"redis://:{secrets.token_hex(16)}@127.0.0.1:0/0",
    )
    common = account, lock, data, logs
    postgres = Postgres(postgres_program, urls.database_url, *common)
    # Before the URLs are written: were it the other way round, an interruption in between
    # would leave a written password that Postgres does not know.
    postgres.prepare(reset_password=found is None)
    return postgres, Redis(redis_program, urls.redis_url, *common)


def _needed(home: Path, users: IO[str], lock: int) -> bool:
    """Whether the services are needed, a moment later."""
    time.sleep(control.TICK_S)
    if not _owns(home, lock):
        return False
    users.seek(0)
    if word := users.read().strip():
        return word == control.KEEP
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the end: nobody comes any more
        return False
    return True


def _owns(home: Path, lock: int) -> bool:
    """Whether the home is the one it was, not deleted, moved away or made anew."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.path.samestat(os.fstat(lock), (home / control.LOCK_NAME).stat())
    return False


def main() -> None:
    """Supervise until stopped."""
    home, lock = Path(sys.argv[1]), int(sys.argv[2])
    try:
        with control.usable(home):
            supervise(home, lock)
    except MarcoError as error:
        traceback.print_exc()
        sys.exit(str(error))


if __name__ == "__main__":
    main()
