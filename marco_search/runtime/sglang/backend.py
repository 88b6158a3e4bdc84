"""A backend over SGLang servers: the frontend's `RuntimeEndpoint` made fit for a service.

It adds what the frontend has no words for: a seed, a request id and a deadline per branch,
kept connections, retries, several servers, cutting short, and errors handed back as values.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.chat_template import get_chat_template

from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.params import error_value, params_of
from marco_search.runtime.sglang.calls import InFlight
from marco_search.runtime.sglang.failures import Failure
from marco_search.runtime.sglang.pool import Pool
from marco_search.runtime.sglang.prefixes import SeenTexts
from marco_search.runtime.sglang.prompts import PARTS
from marco_search.runtime.sglang.retries import Retries, generate

_END_OF_PROMPT = "<|im_start|>assistant\n"
_REMEMBERED = 256  # texts of a few kilobytes each
_LOGPROB_FIELDS = ("return_logprob", "top_logprobs_num", "return_text_in_logprobs")


class EndpointBackend(RuntimeEndpoint):  # type: ignore[misc]
    """Talks to the servers of a pool. `timeout_s`: for a program that sets no deadline."""

    def __init__(self, pool: Pool, *, timeout_s: float, retries: Retries | None = None) -> None:
        # Not the parent's: it would open a connection of its own without a time limit.
        self.support_concate_and_append = False
        self.chat_template = get_chat_template("default")
        self._pool = pool
        self._timeout_s = timeout_s
        self._retries = retries or Retries()
        self._in_flight = InFlight()
        self._seen = SeenTexts(_REMEMBERED)

    @property
    def info(self) -> RuntimeInfo:
        """What the servers serve."""
        return self._pool.info

    def get_model_name(self) -> str:
        """The model's name, as the servers give it."""
        return self.info.model

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        """One completion of the executor's text; a failure is an error value."""
        parameters = {"skip_special_tokens": True, **sampling_params.to_srt_kwargs()}
        body: dict[str, Any] = {**_prefix(s), "sampling_params": parameters}
        # logprob_start_len is never sent: asking for a prompt's own log-probs makes the server
        # compute the whole prompt again.
        for name in _LOGPROB_FIELDS:
            value = getattr(sampling_params, name, None)
            if value is not None:
                body[name] = value
        own = params_of(s)
        if own is not None:
            parameters["sampling_seed"] = own.seed
        found = self._send(s, body)
        if isinstance(found, Failure) and found.room:
            # Near the end of the context: the server refuses to generate less than asked.
            parameters["max_new_tokens"] = min(found.room, parameters["max_new_tokens"])
            found = self._send(s, body)
        if isinstance(found, Failure):
            if found.room == 0:
                return error_value("PromptTooLong", found.message)
            return error_value(found.kind.__name__, found.message)
        text, meta = found.get("text"), found.get("meta_info")
        if not isinstance(text, str) or not isinstance(meta, dict):
            return error_value("BranchFailed", "the server's answer is not a completion")
        if not meta.keys().isdisjoint(("error", "error_type")):
            said = meta.get("error")
            said = said if isinstance(said, str) else "it gives no reason"
            return error_value("BranchFailed", f"the server failed: {said}")
        reason = meta.get("finish_reason")
        matched = reason.get("matched") if isinstance(reason, dict) else None
        self._remember(s.text_ + text + (matched if isinstance(matched, str) else ""))
        return text, meta

    def commit_lazy_operations(self, s: Any) -> None:
        """Prefill the prefix, so that all children find it cached. Failing costs only time.

        A prefix that a server has generated itself is in its cache already.
        """
        server = self._pool.server_for(search_of(s.text_)).url
        if self._seen.cover(server, s.text_):
            return
        body = {**_prefix(s), "sampling_params": {"max_new_tokens": 0}}
        if isinstance(self._send(s, body), dict):
            self._remember(s.text_)

    def abort(self) -> None:
        """End all requests in flight; their branches fail at once. Later ones are not touched."""
        self._in_flight.cancel_all()

    def shutdown(self) -> None:
        """End what is in flight and drop the connections."""
        self.abort()
        self._pool.close()

    def _send(self, s: Any, body: dict[str, Any]) -> dict[str, Any] | Failure:
        own = params_of(s)
        body["rid"] = own.rid if own else uuid.uuid4().hex
        deadline = time.monotonic() + self._timeout_s
        if own:
            deadline = min(deadline, own.deadline)
        with self._in_flight.call(deadline) as call:
            return generate(self._pool, search_of(s.text_), body, call, self._retries)

    def _remember(self, text: str) -> None:
        self._seen.add(self._pool.server_for(search_of(text)).url, text)


def _prefix(s: Any) -> dict[str, Any]:
    """What is to be continued: the text, and its parts for a server that takes ids."""
    own = params_of(s)
    return {"text": s.text_, PARTS: own.parts if own else ()}


def search_of(text: str) -> str:
    """The part of a prefix that all prefixes of one search share: its prompt.

    Prompts are in ChatML and no caller's text holds its control tokens, so the last of them
    ends the prompt.
    """
    end = text.rfind(_END_OF_PROMPT)
    return text[: end + len(_END_OF_PROMPT)] if end >= 0 else text[:256]
