"""Why a request failed, with what may be done about it; and how many may be in flight."""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from dataclasses import dataclass

from marco_search.deadlines import Call, seconds_of
from marco_search.errors import BranchFailed, PromptTooLong, RuntimeFailure, RuntimeUnavailable

_POLL_S = 0.25
_BACK_OFF = 0.5
_LONGEST_BODY = 10_000  # characters of an error's body that are read
# How servers say that a prompt does not fit.
_TOO_LONG = (
    "longer than the model's context length", "exceeds the maximum", "maximum allowed",  # SGLang
    "longer than the maximum model length",  # vLLM
    "exceeds the available context size",  # llama.cpp
    "`inputs` must have less than",  # TGI
)  # fmt: skip
# The prompt fits, but not all that may be generated: (context, prompt) in tokens.
_TOO_MUCH = tuple(
    re.compile(pattern)
    for pattern in (
        r"maximum context length of (\d+) tokens.* (\d+) tokens from the input",  # SGLang
        r"maximum context length is (\d+) tokens.*?\((\d+) in ",  # llama-cpp-python, older vLLM
        r"maximum context length is (\d+) tokens.*? (\d+) input tokens",  # vLLM
        r"must be <= (\d+)\. Given: (\d+) `inputs` tokens",  # TGI
    )
)


@dataclass(kw_only=True, eq=False)
class Failure(Exception):
    """One failed request. `kind` is the error that it is, if nothing more can be done."""

    kind: type[RuntimeFailure]
    message: str
    retryable: bool = False  #: the same request may succeed if it is sent again
    overloaded: bool = False  #: the server is healthy but has too much to do
    unreachable: bool = False  #: no connection could be made
    stale: bool = False  #: a kept connection was closed: nothing is known of the server
    max_new_tokens: int | None = None  #: the most that may be asked for, where more was
    not_found: bool = False  #: the server has no such path
    retry_after_s: float | None = None  #: how long the server asks us to wait


def unavailable(message: str, *, unreachable: bool = False) -> Failure:
    """No connection, one that was lost, or an answer that can't be used: worth another try."""
    return Failure(
        kind=RuntimeUnavailable, message=message, retryable=True, unreachable=unreachable
    )


def refused(url: str, status: int, retry_after: str | None, details: str) -> Failure:
    """An answer with a status other than 200: its Retry-After header and what it says."""
    message = f"{url} answered {status}" + (f": {details}" if details else "")
    if status in (401, 403):
        message += " (set MARCO_RUNTIME_API_KEY to the server's key)"
        return Failure(kind=RuntimeUnavailable, message=message)
    if status in (408, 429) or status >= 500:
        return Failure(
            kind=RuntimeUnavailable,
            message=message,
            retryable=True,
            overloaded=status in (429, 503),
            retry_after_s=seconds_of(retry_after),
        )
    if any(words in details for words in _TOO_LONG):
        return Failure(kind=PromptTooLong, message=details)
    found = next(filter(None, (pattern.search(details) for pattern in _TOO_MUCH)), None)
    room = max(0, int(found[1]) - int(found[2]) - 1) if found else None
    kind = PromptTooLong if room == 0 else BranchFailed
    return Failure(kind=kind, message=message, max_new_tokens=room, not_found=status == 404)


def reason(error: Exception) -> str:
    """What an error of the connection says."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message} (set MARCO_RUNTIME_CA to the certificate to trust)"
    return str(error) or type(error).__name__


def details(body: bytes) -> str:
    """The server's own words: OpenAI's error object, FastAPI's detail, or the text as it is."""
    text = body[:_LONGEST_BODY].decode(errors="replace")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return text
    if isinstance(found, dict):
        found = found.get("error", found)
    if isinstance(found, dict):
        found = found.get("message", found.get("detail", found))
    return found[:_LONGEST_BODY] if isinstance(found, str) else text


def cut_short(call: Call) -> Failure:
    """The outcome of a finished call."""
    if call.left_s <= 0:
        return Failure(kind=RuntimeUnavailable, message="no answer before the branch's deadline")
    return Failure(kind=BranchFailed, message="aborted")


class Limiter:
    """Allows `limit` calls at once, between 1 and `most`, and begins with `most`.

    Additive increase, multiplicative decrease (as in TCP): every window of answers in good time
    allows one more, an answer of "too many" or one that took too long halves the allowance.
    Every worker process keeps its own; processes that share a server find their shares like TCP
    streams.
    """

    def __init__(self, most: int, slow_s: float) -> None:
        """`slow_s`: an answer that took longer than this says that the server is overloaded."""
        self._most = float(most)
        self._slow_s = slow_s
        self._limit = float(most)
        self._free = threading.Condition()
        self.in_flight = 0
        self._reduced_at = float("-inf")

    @property
    def limit(self) -> int:
        """Calls allowed at once."""
        return int(self._limit)

    def acquire(self, call: Call) -> bool:
        """Wait for a place. False if the call was cut short or its time was up first."""
        with self._free:
            while self.in_flight >= self.limit and not call.over:
                self._free.wait(min(_POLL_S, call.timeout_s))
            if call.over:
                return False
            self.in_flight += 1
            return True

    def release(self, began: float, *, ok: bool, overloaded: bool) -> None:
        """Give the place back. `began`: when the call did, on time.monotonic().

        `overloaded`: the server answered that it is. A failure of another kind says nothing
        about its load.
        """
        now = time.monotonic()
        with self._free:
            full = self.in_flight >= self.limit
            self.in_flight -= 1
            if overloaded or now - began > self._slow_s:
                # Calls that were on their way at the last reduction tell nothing new.
                if began > self._reduced_at:
                    self._limit = max(1.0, self._limit * _BACK_OFF)
                    self._reduced_at = now
            elif ok and full:
                self._limit = min(self._most, self._limit + 1 / self._limit)
            self._free.notify_all()
