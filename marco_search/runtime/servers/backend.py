"""SGLang's frontend language on several servers of one model: a `BaseBackend` fit for a service.

It adds what the frontend's own endpoint has not: a seed, a request id and a deadline per branch,
kept connections, retries, several servers, cutting short, and errors handed back as values.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Any

from sglang.lang.backend.base_backend import BaseBackend

from marco_search.deadlines import Call
from marco_search.errors import BranchFailed, ModelRefused, RuntimeUnavailable
from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.program import error_value, params_of
from marco_search.runtime.servers.calls import Failure, cut_short
from marco_search.runtime.servers.server import Server
from marco_search.search.branches import Part

_REMEMBERED = 256  # texts of a few kilobytes each
_LOGPROB_FIELDS = ("return_logprob", "top_logprobs_num", "return_text_in_logprobs")
_TRIES = 4  # not counting answers of "too many": those are waited out
_BASE_S, _CAP_S = 0.25, 8.0
_random = Random()  # seeded by the system, unlike anything in a search


class ServersBackend(BaseBackend):  # type: ignore[misc]
    """Chooses a server for each search and tries again what failed.

    A search keeps to one server, so that its prefixes are cached there. The choice is a hash of
    its prompt (rendezvous hashing), so that all processes agree without speaking to each other,
    and a job that continues elsewhere finds its prefixes. Unhealthy servers are left out.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        """Raises ModelRefused if models differ or won't do, RuntimeUnavailable if none answers."""
        super().__init__()
        self._servers = servers
        self.info = _agree(servers)
        for server in servers:
            server.expected = self.info
        self._calls: set[Call] = set()  # in flight
        self._lock = threading.Lock()
        # (server, text) that it must have in its prefix cache, because it saw it lately.
        self._seen: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED)

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        """One completion of the executor's text; a failure is an error value."""
        try:
            return self._complete(s, sampling_params)
        except Failure as failure:
            return error_value(failure.kind.__name__, failure.message)

    def commit_lazy_operations(self, s: Any) -> None:
        """Prefill the prefix, so that all children find it cached. Failing costs only time.

        A prefix that a server has generated itself is in its cache already.
        """
        server = self._server_for(_prompt_of(s))
        if not server.prefills:
            return
        with self._lock:
            # The newest first: a search forks from what it has just written.
            texts = [text for at, text in reversed(self._seen) if at == server.url]
        if any(text.startswith(s.text_) for text in texts):
            return
        with contextlib.suppress(Failure):
            self._send(s, {"max_new_tokens": 0}, {})
            self._remember(s, s.text_)

    def abort(self) -> None:
        """End all requests in flight; their branches fail at once. Later ones are not touched."""
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def shutdown(self) -> None:
        """End what is in flight and drop the connections."""
        self.abort()
        for server in self._servers:
            server.close()

    def _complete(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        parameters = {"skip_special_tokens": True, **sampling_params.to_srt_kwargs()}
        parameters["sampling_seed"] = params_of(s).seed
        # logprob_start_len is never sent: asking for a prompt's own log-probs makes the server
        # compute the whole prompt again.
        fields = {name: getattr(sampling_params, name) for name in _LOGPROB_FIELDS}
        try:
            found = self._send(s, parameters, fields)
        except Failure as failure:
            if not failure.max_new_tokens:
                raise
            # Near the end of the context: the server refuses to generate less than asked.
            parameters["max_new_tokens"] = min(failure.max_new_tokens, parameters["max_new_tokens"])
            found = self._send(s, parameters, fields)
        text, meta = found.get("text"), found.get("meta_info")
        if not isinstance(text, str) or not isinstance(meta, dict):
            raise Failure(kind=BranchFailed, message="the server's answer is not a completion")
        if "error" in meta or "error_type" in meta:
            reason = meta.get("error")
            reason = reason if isinstance(reason, str) else "it gives no reason"
            raise Failure(kind=BranchFailed, message=f"the server failed: {reason}")
        finish = meta.get("finish_reason")
        matched = finish.get("matched") if isinstance(finish, dict) else None
        self._remember(s, s.text_ + text + (matched if isinstance(matched, str) else ""))
        return text, meta

    def _send(self, s: Any, parameters: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        """The server's answer, or Failure when it refuses, time is up, or it failed too often.

        Sending again is safe: it changes nothing on the server, and the seed makes the second
        answer as good as the first.
        """
        own = params_of(s)
        body = {"text": s.text_, "rid": own.rid, "sampling_params": parameters, **fields}
        call = Call(own.deadline)
        with self._lock:
            self._calls.add(call)
        try:
            return self._try(_prompt_of(s), body, own.parts, call)
        finally:
            with self._lock:
                self._calls.discard(call)

    def _try(
        self, prompt: str, body: dict[str, Any], parts: Sequence[Part], call: Call
    ) -> dict[str, Any]:
        rid, failed, counted = body["rid"], 0, 0
        while True:
            try:
                return self._server_for(prompt).generate(body, parts, call)
            except Failure as failure:
                failed += 1
                counted += not (failure.overloaded or failure.stale)
                if not failure.retryable or counted >= _TRIES:
                    raise
                if not failure.stale and not call.wait(
                    retry_delay_s(failed, failure.retry_after_s)
                ):
                    raise cut_short(call) if call.left_s > 0 else failure from None
            # The server may still know the id of a try that broke off, and refuse it.
            body["rid"] = f"{rid}-{failed}"

    def _remember(self, s: Any, text: str) -> None:
        """The search's server has read or written all of `text`."""
        with self._lock:
            self._seen.append((self._server_for(_prompt_of(s)).url, text))

    def _server_for(self, prompt: str) -> Server:
        """The server of the search with this prompt. An unhealthy one if there is no other."""
        if len(self._servers) == 1:
            return self._servers[0]
        for server in self._servers:
            server.probe()

        def weight(server: Server) -> tuple[bool, bytes]:
            return server.healthy, blake2b(f"{server.url} {prompt}".encode()).digest()

        return max(self._servers, key=weight)


def _agree(servers: Sequence[Server]) -> RuntimeInfo:
    """What all servers that answer serve."""
    info: RuntimeInfo | None = None
    failed: list[str] = []
    for server in servers:
        try:
            found = server.describe()
        except Failure as failure:
            if failure.kind is ModelRefused:
                raise ModelRefused(failure.message) from None
            failed.append(failure.message)
            continue
        info = info or found
        if (info.model, info.revision) != (found.model, found.revision):
            raise ModelRefused(
                f"MARCO_RUNTIME: {server.url} serves {found.model} ({found.revision}), another "
                f"server {info.model} ({info.revision}): all must serve the same model"
            )
    if info is None:
        raise RuntimeUnavailable("; ".join(failed))
    return info


def _prompt_of(s: Any) -> str:
    """The part of a prefix that all prefixes of one search share: its prompt."""
    return str(params_of(s).parts[0])


def retry_delay_s(failed: int, asked_s: float | None, random: Random = _random) -> float:
    """Exponential backoff with full jitter; at least what the server asked for."""
    jitter = random.uniform(0, min(_CAP_S, _BASE_S * 2.0 ** min(failed - 1, 30)))
    return jitter if asked_s is None else asked_s + jitter
