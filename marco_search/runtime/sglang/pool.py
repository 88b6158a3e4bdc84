"""Several servers of one model: a search keeps to one, so that its prefixes are cached there."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from marco_search.errors import ModelRefused, RuntimeUnavailable
from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.sglang.failures import Failure
from marco_search.runtime.sglang.server import Server

_REMEMBERED = 4096  # searches whose server is known


class Pool:
    """Chooses a server for each search.

    The choice is a hash of the search's prompt (rendezvous hashing), so that all processes
    agree without speaking to each other, and a job that goes on elsewhere finds its prefixes.
    A server that is not well is left out; whoever was there keeps to the next one.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = list(servers)
        self._lock = threading.Lock()
        self._chosen: OrderedDict[str, Server] = OrderedDict()
        self.info = self._agree()
        for server in self._servers:
            server.expected = self.info

    def server_for(self, prompt: str) -> Server:
        """The server of the search with this prompt. An unwell one if there is no other."""
        if len(self._servers) == 1:
            return self._servers[0]
        self._look_again()
        key = blake2b(prompt.encode(), digest_size=16).hexdigest()
        with self._lock:
            server = self._chosen.pop(key, None)
            if server is None or not server.well:
                server = self._best(key)
            self._chosen[key] = server
            if len(self._chosen) > _REMEMBERED:
                self._chosen.popitem(last=False)
            return server

    def close(self) -> None:
        """Drop all connections."""
        for server in self._servers:
            server.close()

    def _best(self, key: str) -> Server:
        def weight(server: Server) -> tuple[bool, bytes]:
            return server.well, blake2b(f"{key} {server.url}".encode()).digest()

        return max(self._servers, key=weight)

    def _agree(self) -> RuntimeInfo:
        """What all servers that answer serve.

        Raises ModelRefused if they differ, RuntimeUnavailable if none answers.
        """
        info: RuntimeInfo | None = None
        failed: list[str] = []
        for server in self._servers:
            found = server.describe()
            if isinstance(found, Failure):
                failed.append(found.message)
            elif info is None:
                info = found
            elif not _same(info, found):
                raise ModelRefused(
                    f"MARCO_RUNTIME: {server.url} serves {found.model} ({found.revision}), another "
                    f"server {info.model} ({info.revision}): all must serve the same model"
                )
        if info is None:
            raise RuntimeUnavailable("; ".join(failed))
        return info

    def _look_again(self) -> None:
        for server in self._servers:
            if server.claim_look():
                # Not in the caller's thread: a machine that is gone takes its time to say so.
                threading.Thread(target=server.describe, name="marco-probe", daemon=True).start()


def _same(a: RuntimeInfo, b: RuntimeInfo) -> bool:
    return (a.model, a.revision) == (b.model, b.revision)
