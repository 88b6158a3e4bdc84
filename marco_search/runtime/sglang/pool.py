"""Several servers of one model: a search keeps to one, so that its prefixes are cached there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Any

from marco_search.errors import ModelRefused, RuntimeUnavailable
from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.sglang.calls import Call
from marco_search.runtime.sglang.failures import Failure
from marco_search.runtime.sglang.server import Server
from marco_search.search.branches import Part

_REMEMBERED = 4096  # searches whose server is known
_TRIES = 4  # not counting answers of "too many": those are waited out
_BASE_S, _CAP_S = 0.25, 8.0
_random = Random()  # seeded by the system, unlike anything in a search


class Pool:
    """Chooses a server for each search and tries again what failed.

    The choice is a hash of the search's prompt (rendezvous hashing), so that all processes
    agree without speaking to each other, and a job that continues elsewhere finds its prefixes.
    An unhealthy server is left out; its searches keep to the next one.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = list(servers)
        self._lock = threading.Lock()
        self._chosen: dict[str, Server] = {}
        self.info = self._agree()
        for server in self._servers:
            server.expected = self.info

    def generate(
        self, prompt: str, body: dict[str, Any], parts: Sequence[Part], call: Call
    ) -> dict[str, Any] | Failure:
        """The answer to `body`, from the server of the search that `prompt` belongs to.

        Sent until it is answered, refused, out of time, or has failed too often. That is safe:
        it changes nothing on the server, and its seed makes the second answer as good as the
        first.
        """
        rid, failed, counted = body["rid"], 0, 0
        while True:
            # A server may still know the id of a try that broke off, and refuse it.
            attempt = body if not failed else body | {"rid": f"{rid}-{failed}"}
            found = self.server_for(prompt).generate(attempt, parts, call)
            if isinstance(found, dict) or not found.retryable:
                return found
            failed += 1
            counted += not found.overloaded
            if counted >= _TRIES:
                return found
            if not call.wait(retry_delay_s(failed, found.retry_after_s)):
                return call.cut_short() if call.left_s > 0 else found

    def server_for(self, prompt: str) -> Server:
        """The server of the search with this prompt. An unhealthy one if there is no other."""
        if len(self._servers) == 1:
            return self._servers[0]
        self._probe_unhealthy()
        key = blake2b(prompt.encode(), digest_size=16).hexdigest()
        with self._lock:
            server = self._chosen.get(key)
            if server is None or not server.healthy:
                if len(self._chosen) >= _REMEMBERED:
                    self._chosen.clear()
                server = self._chosen[key] = self._best(key)
            return server

    def close(self) -> None:
        """Drop all connections."""
        for server in self._servers:
            server.close()

    def _best(self, key: str) -> Server:
        def weight(server: Server) -> tuple[bool, bytes]:
            return server.healthy, blake2b(f"{key} {server.url}".encode()).digest()

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
            elif (info.model, info.revision) != (found.model, found.revision):
                raise ModelRefused(
                    f"MARCO_RUNTIME: {server.url} serves {found.model} ({found.revision}), another "
                    f"server {info.model} ({info.revision}): all must serve the same model"
                )
        if info is None:
            raise RuntimeUnavailable("; ".join(failed))
        return info

    def _probe_unhealthy(self) -> None:
        for server in self._servers:
            if server.try_probe():
                # Not in the caller's thread: a machine that is gone takes its time to say so.
                threading.Thread(target=server.describe, name="marco-probe", daemon=True).start()


def retry_delay_s(failed: int, asked_s: float | None, random: Random = _random) -> float:
    """Exponential backoff with full jitter; at least what the server asked for."""
    jitter = random.uniform(0, min(_CAP_S, _BASE_S * 2.0 ** min(failed - 1, 30)))
    return jitter if asked_s is None else asked_s + jitter
