"""The supervisor: one process per MARCO_HOME that owns its Postgres and its Redis.

    python -m marco_search.local.supervisor HOME CONNECTION

It starts both, starts either again when it dies (same port, same data), and stops both when it
is told to or when no user is connected any more; CONNECTION is the first user's. When it dies
itself, even by kill -9, the kernel stops both (servers.py). Why it ended is the last line that
it prints. In MARCO_HOME, beside data and logs:

services.json     the URLs, mode 0600: ports and passwords last as long as the home
supervisor.sock   where users connect
supervisor.lock   held by the supervisor and by all processes of the servers: it is free when
                  the last of them is gone, however they ended
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import sys
import traceback
from pathlib import Path

from marco_search.errors import MarcoError
from marco_search.local import control, programs
from marco_search.local.control import ServiceUrls, unusable
from marco_search.local.programs import data_folder, server_account
from marco_search.local.servers import Postgres, Redis, Server

_STOP_S = 20.0  # then a server is killed; its data survives that
_START_TICK_S = 0.02


class Supervisor:
    """The servers of one home, and who needs them."""

    def __init__(self, home: Path, listener: socket.socket, user: socket.socket) -> None:
        """`user` is the first to be connected."""
        self._home, self._listener = home, listener
        self._connected, self._users = [user], {user}
        self._unanswered = set[socket.socket]()
        self._kept = self._stopped = False

    def serve(self, lock: int) -> None:
        """Run until told to stop, or until nobody needs the services.

        Raises LocalServiceFailed if a server can't be started.
        """
        servers = self._prepared(lock)
        try:
            for server in servers:
                server.start_anew(lambda: self._needed(None))
            urls = ServiceUrls(*(server.url for server in servers))
            while self._needed(urls):
                for server in servers:
                    if server.ended:
                        server.start()
        finally:
            self._stop(servers)

    def _prepared(self, lock: int) -> tuple[Server, Server]:
        account = server_account()
        data, logs = data_folder(self._home, account), self._home / "logs"
        paths = programs.usable_by(account, data)
        found = control.read_urls(self._home)
        urls = found or ServiceUrls(
            f"postgresql://marco:{secrets.token_hex(16)}@127.0.0.1:0/marco",
            f"redis://:{secrets.token_hex(16)}@127.0.0.1:0/0",
        )
        common = account, lock, data, logs
        postgres = Postgres(paths.postgres / "postgres", urls.database_url, *common)
        # Before the URLs are written: were it the other way round, an interruption in between
        # would leave a written password that Postgres does not know.
        postgres.prepare(reset_password=found is None)
        return postgres, Redis(paths.redis_server, urls.redis_url, *common)

    def _needed(self, urls: ServiceUrls | None) -> bool:
        """Hear the users for a tick. Whether the services are needed afterwards.

        `urls` once both answer: those who wait for them are told.
        """
        if not self._home.is_dir():
            return False
        if urls is not None and control.read_urls(self._home) != urls:
            control.write_urls(self._home, urls)
        tick_s = _START_TICK_S if urls is None else control.TICK_S
        for heard in select.select([self._listener, *self._connected], [], [], tick_s)[0]:
            if heard is self._listener:
                self._connected.append(heard.accept()[0])
            else:
                with contextlib.suppress(ConnectionError):
                    self._hear(heard)
        while urls is not None and self._unanswered:
            with contextlib.suppress(ConnectionError):
                self._unanswered.pop().sendall(urls.to_json().encode())
        return (bool(self._users) or self._kept) and not self._stopped

    def _hear(self, user: socket.socket) -> None:
        said = user.recv(control.WORD_BYTES)
        if said == control.NEED:
            self._users.add(user)
            self._unanswered.add(user)
        elif said:
            self._kept = said == control.KEEP
            self._stopped = said == control.STOP
        else:
            self._connected.remove(user)
            self._users.discard(user)
            self._unanswered.discard(user)
            if self._users or self._kept:
                user.close()
            else:
                user.detach()  # left open: the kernel hangs up when this process is gone

    def _stop(self, servers: tuple[Server, Server]) -> None:
        self._listener.close()  # first, so that nobody connects any more
        (self._home / control.SOCKET_NAME).unlink(missing_ok=True)
        for server in servers:
            server.signal_stop()
        for server in servers:
            server.wait(_STOP_S)
        for user in self._connected:
            user.detach()  # as above


def main() -> int:
    """Supervise until stopped. Returns the exit status."""
    home, user = Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    try:
        lock = control.acquired_lock(home)
        if lock is not None:
            with control.socket_address(home) as address, socket.socket(socket.AF_UNIX) as listener:
                (home / control.SOCKET_NAME).unlink(missing_ok=True)
                listener.bind(address)
                Path(address).chmod(0o600)
                listener.listen()
                Supervisor(home, listener, user).serve(lock)
    except (MarcoError, OSError) as error:
        traceback.print_exc()
        print(unusable(home, error) if isinstance(error, OSError) else error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
