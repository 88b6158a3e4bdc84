"""SGLang's frontend language on a pool of servers: a `BaseBackend` fit for a service.

It adds what the frontend's own endpoint has not: a seed, a request id and a deadline per branch,
kept connections, retries, several servers, cutting short, and errors handed back as values.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from sglang.lang.backend.base_backend import BaseBackend

from marco_search.runtime.program import error_value, params_of
from marco_search.runtime.sglang.calls import InFlight
from marco_search.runtime.sglang.failures import Failure
from marco_search.runtime.sglang.pool import Pool

_END_OF_PROMPT = "<|im_start|>assistant\n"
_REMEMBERED = 256  # texts of a few kilobytes each
_LOGPROB_FIELDS = ("return_logprob", "top_logprobs_num", "return_text_in_logprobs")


class SGLangBackend(BaseBackend):  # type: ignore[misc]
    """Talks to the servers of a pool."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool
        self._in_flight = InFlight()
        self._lock = threading.Lock()
        # (server, text) that it must have in its prefix cache, because it saw it lately.
        self._seen: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED)

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        """One completion of the executor's text; a failure is an error value."""
        parameters = {"skip_special_tokens": True, **sampling_params.to_srt_kwargs()}
        parameters["sampling_seed"] = params_of(s).seed
        # logprob_start_len is never sent: asking for a prompt's own log-probs makes the server
        # compute the whole prompt again.
        fields = {name: getattr(sampling_params, name) for name in _LOGPROB_FIELDS}
        found = self._send(s, parameters, fields)
        if isinstance(found, Failure) and found.max_new_tokens:
            # Near the end of the context: the server refuses to generate less than asked.
            most = min(found.max_new_tokens, parameters["max_new_tokens"])
            found = self._send(s, parameters | {"max_new_tokens": most}, fields)
        if isinstance(found, Failure):
            kind = "PromptTooLong" if found.max_new_tokens == 0 else found.kind.__name__
            return error_value(kind, found.message)
        text, meta = found.get("text"), found.get("meta_info")
        if not isinstance(text, str) or not isinstance(meta, dict):
            return error_value("BranchFailed", "the server's answer is not a completion")
        if "error" in meta or "error_type" in meta:
            reason = meta.get("error")
            reason = reason if isinstance(reason, str) else "it gives no reason"
            return error_value("BranchFailed", f"the server failed: {reason}")
        finish = meta.get("finish_reason")
        matched = finish.get("matched") if isinstance(finish, dict) else None
        self._remember(s.text_ + text + (matched if isinstance(matched, str) else ""))
        return text, meta

    def commit_lazy_operations(self, s: Any) -> None:
        """Prefill the prefix, so that all children find it cached. Failing costs only time.

        A prefix that a server has generated itself is in its cache already.
        """
        server = self._pool.server_for(prompt_of(s.text_)).url
        with self._lock:
            # The newest first: a search forks from what it has just written.
            texts = [text for at, text in reversed(self._seen) if at == server]
        if any(text.startswith(s.text_) for text in texts):
            return
        if isinstance(self._send(s, {"max_new_tokens": 0}, {}), dict):
            self._remember(s.text_)

    def abort(self) -> None:
        """End all requests in flight; their branches fail at once. Later ones are not touched."""
        self._in_flight.cancel_all()

    def shutdown(self) -> None:
        """End what is in flight and drop the connections."""
        self.abort()
        self._pool.close()

    def _send(
        self, s: Any, parameters: dict[str, Any], fields: dict[str, Any]
    ) -> dict[str, Any] | Failure:
        own = params_of(s)
        body = {"text": s.text_, "rid": own.rid, "sampling_params": parameters, **fields}
        with self._in_flight.call(own.deadline) as call:
            return self._pool.generate(prompt_of(s.text_), body, own.parts, call)

    def _remember(self, text: str) -> None:
        """The search's server has read or written all of `text`."""
        with self._lock:
            self._seen.append((self._pool.server_for(prompt_of(text)).url, text))


def prompt_of(text: str) -> str:
    """The part of a prefix that all prefixes of one search share: its prompt.

    Prompts are in ChatML and no caller's text holds its control tokens, so the last of them
    ends the prompt.
    """
    end = text.rfind(_END_OF_PROMPT)
    return text[: end + len(_END_OF_PROMPT)] if end >= 0 else text[:256]
