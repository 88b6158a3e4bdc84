"""One server: its connections, its allowance, and whether it is healthy.

What it is asked and answers is a protocol's: a subclass has the methods that raise
NotImplementedError here. Requests and answers are in SGLang's terms on this side of it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from marco_search.deadlines import Call
from marco_search.errors import ModelRefused
from marco_search.runtime.base import UNKNOWN, RuntimeInfo
from marco_search.runtime.reply import LARGEST_ID
from marco_search.runtime.servers.calls import Failure, Limiter, cut_short, unavailable
from marco_search.runtime.servers.connections import Connections
from marco_search.search.branches import Part
from marco_search.settings import Settings

DEFAULT_CONTEXT_TOKENS = 32_768  # of Qwen2 and Marco-o1, for a server that does not say
_MOST_CONTEXT_TOKENS = 2**30
_ABORT_S = 2.0
_POLL_S = 0.25
# Bytes of an answer. A token comes with five candidates, each about 40 and its text.
_ANSWER, _ANSWER_A_TOKEN = 2**18, 2**11
_FAILURES = 3  # in a row that make a server unhealthy; one refused connection does too
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_REMEMBERED = 256  # texts: a prompt for each search, and the reflection phrase


class Server:
    """Requests to one server. All methods may be called from any thread and may raise Failure."""

    liveness: str  #: a path that is answered at once, whatever else the server does
    prefills = True  #: whether a prefix is worth a request that only fills the cache
    ask_s = 10.0  #: for a server to say what it serves

    def __init__(self, url: str, settings: Settings) -> None:
        """Raises InvalidSettings for a key or a CA file that can't be used."""
        self.url = url
        self.expected: RuntimeInfo | None = None  # what it must serve, once that is known
        # The chat template's text and the special tokens by name, if the server tells them.
        self.template: tuple[str, dict[str, str]] | None = None
        # A branch that takes half its time limit says that the server has too much to do.
        self.limiter = Limiter(settings.runtime_max_in_flight, settings.runtime_timeout_s / 2)
        self._connections = Connections(url, settings, self._check, self.liveness)
        self._lock = threading.Lock()
        self._describing = threading.Lock()
        self._described = False  # how it is to be asked is known
        self._asker: threading.Thread | None = None
        self._refusal = unavailable(f"{url} does not say what it serves")
        self._tokenizes = False  # whether it can say what a text is in tokens
        self._ids: dict[tuple[str, bool], list[int]] = {}
        self._consecutive_failures = 0
        self._silent = False  # unhealthy because it answered nothing in time
        self._pause_s = 0.0  # 0: healthy
        self._probe_at = 0.0

    # -- the protocol ------------------------------------------------------------------

    def _describe(self) -> RuntimeInfo:
        """Find out how the server is to be asked, and what it serves."""
        raise NotImplementedError

    def _identity(self, call: Call) -> tuple[str, str]:
        """Model and revision as the server has them now, through `_expect`."""
        raise NotImplementedError

    def _complete(
        self, body: Mapping[str, Any], parts: Sequence[Part], call: Call
    ) -> dict[str, Any]:
        """The answer to SGLang's /generate `body`, as that has it.

        `parts` is the text to continue in parts (see `Expansion`).
        """
        raise NotImplementedError

    def _tokenize(self, text: str, first: bool, call: Call) -> object:
        """The ids of a text; only the `first` may get what begins a sequence."""
        raise NotImplementedError

    def _try_generation(self, call: Call) -> None:
        """A silent server said before what it serves, and generated nothing."""
        raise NotImplementedError

    def _abort(self, rid: str, call: Call) -> None:
        """Tell the server that nobody waits for the request, if it supports that."""

    # -- requests ----------------------------------------------------------------------

    def describe(self) -> RuntimeInfo:
        """Model and engine behind the server; asked at the start, and when it was away."""
        with self._describing:
            try:
                found = self._describe()
            except Failure:
                if not self._pause_s:  # else `_check` has seen it
                    self._mark_unhealthy()
                raise
            self._described = True
            return found

    def generate(
        self, body: Mapping[str, Any], parts: Sequence[Part], call: Call
    ) -> dict[str, Any]:
        """One try of a completion, when the server's allowance has a place."""
        self._require_described(call)
        if not self.limiter.acquire(call):
            raise cut_short(call)
        try:
            found = self._counted(body, parts, call)
        except Failure as failure:
            if not call.over:
                self._note(failure)
                raise
            # Without this the server would generate on, with no caller waiting.
            with contextlib.suppress(Failure):
                self._abort(body["rid"], Call(time.monotonic() + _ABORT_S))
            if call.left_s <= 0:
                self._count_failure(silent=True)
            raise
        self._note(None)
        return found

    def close(self) -> None:
        """Drop the connections."""
        self._connections.close()

    def _counted(
        self, body: Mapping[str, Any], parts: Sequence[Part], call: Call
    ) -> dict[str, Any]:
        """Complete, and give the place back."""
        began, ok, overloaded = time.monotonic(), False, False
        try:
            found = self._complete(body, parts, call)
            ok = True
            return found
        except Failure as failure:
            overloaded = failure.overloaded
            raise
        finally:
            self.limiter.release(began, ok=ok, overloaded=overloaded)

    def _post(self, path: str, body: Mapping[str, Any], tokens: int, call: Call) -> dict[str, Any]:
        """The answer to a request for at most so many tokens."""
        return self._connections.request(path, call, body, _ANSWER + _ANSWER_A_TOKEN * tokens)

    def _token_ids(self, parts: Sequence[Part], call: Call) -> list[int]:
        """The ids of a prefix; the server itself says what a text is in tokens.

        As a text the prefix would be tokenised again, and not always into the tokens that were
        generated and that the trail holds.
        """
        ids: list[int] = []
        for i, part in enumerate(parts):
            ids += self._ids_of(part, i == 0, call) if isinstance(part, str) else part
        return ids

    def _ids_of(self, text: str, first: bool, call: Call) -> list[int]:
        known = self._ids.get((text, first))
        if known is not None:
            return known
        ids = self._asked_ids(text, first, call)
        # A template may write what begins a sequence itself: once is enough.
        if first and ids[:1] == ids[1:2] and ids[1:] == self._asked_ids(text, False, call):
            ids = ids[1:]
        if len(self._ids) >= _REMEMBERED:
            self._ids.clear()
        self._ids[text, first] = ids
        return ids

    def _asked_ids(self, text: str, first: bool, call: Call) -> list[int]:
        ids = self._tokenize(text, first, call)
        if not isinstance(ids, list) or any(
            type(i) is not int or not 0 <= i <= LARGEST_ID for i in ids
        ):
            raise unavailable(f"{self.url}: its tokenizer's answer has no token ids")
        return ids

    # -- what it serves ----------------------------------------------------------------

    def _require_described(self, call: Call) -> None:
        """Have a server described that was away when the others were.

        One thread does it for all that wait, and may take longer than their calls.
        """
        if self._described:
            return
        with self._lock:
            asking = self._ask_again()
        while asking.is_alive():
            asking.join(min(_POLL_S, call.timeout_s))
            if call.over:
                raise cut_short(call)
        if not self._described:
            raise replace(self._refusal)

    def _find_tokenizer(self) -> None:
        """Ask for the ids of a text, to know whether it can be asked."""
        self._ids.clear()
        try:
            self._ids_of("a", True, self._asking())
            self._tokenizes = True
        except Failure:
            self._tokenizes = False

    def _asking(self) -> Call:
        """A call that asks what the server is."""
        return Call(time.monotonic() + self.ask_s)

    def _check(self, call: Call) -> tuple[str, str]:
        """Model and revision, as the server has them now; this decides whether it is healthy.

        One that was away may have been started again, with another model.
        """
        try:
            found = self._identity(call)
            if self._silent:
                self._try_generation(call)
        except Failure:
            self._mark_unhealthy()
            raise
        if not self.healthy:
            self._note(None)
        return found

    def _expect(self, model: object, revision: object) -> tuple[str, str]:
        """Both as they may be shown; Failure if they are not those of the start."""
        model, revision = (self._connections.quoted(str(x or UNKNOWN)) for x in (model, revision))
        expected = self.expected
        if expected and (model, revision) != (expected.model, expected.revision):
            message = (
                f"{self.url} serves {model} ({revision}) now, "
                f"it was {expected.model} ({expected.revision})"
            )
            raise Failure(kind=ModelRefused, message=message, retryable=True)
        return model, revision

    # -- health ------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """False until it is described, and from when it stopped answering until it does again."""
        return self._described and self._pause_s == 0

    def probe(self) -> None:
        """Ask an unhealthy server, once it has had its pause, whether it is back.

        Not in the caller's thread: a machine that is gone takes its time to say so.
        """
        with self._lock:
            now = time.monotonic()
            if self.healthy or now < self._probe_at:
                return
            self._probe_at = now + self.ask_s + self._pause_s
            self._ask_again()

    def _ask_again(self) -> threading.Thread:
        """The thread that describes the server, unless it runs a new one. Needs the lock."""
        if self._asker is None or not self._asker.is_alive():
            self._asker = threading.Thread(target=self._probe, name="marco-probe", daemon=True)
            self._asker.start()
        return self._asker

    def _probe(self) -> None:
        try:
            self.describe()
        except Failure as failure:
            self._refusal = failure

    def _mark_unhealthy(self) -> None:
        """Leave it alone for a while, longer every time."""
        with self._lock:
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._probe_at = time.monotonic() + self._pause_s

    def _note(self, failure: Failure | None) -> None:
        """Take in how a request ended; a refusal is an answer too."""
        if failure is not None and failure.stale:
            return
        if failure is not None and failure.retryable and not failure.overloaded:
            self._count_failure(unreachable=failure.unreachable)
            return
        with self._lock:
            self._consecutive_failures = 0
            self._pause_s = 0.0
            self._silent = False

    def _count_failure(self, *, unreachable: bool = False, silent: bool = False) -> None:
        """Count a failure; `silent`: no answer until the deadline."""
        with self._lock:
            self._consecutive_failures += 1
            down = self.healthy and (unreachable or self._consecutive_failures >= _FAILURES)
            self._silent |= down and silent
        if down:
            self._mark_unhealthy()


def context_tokens(reported: object) -> int:
    """The context that a server says it has, or the usual one."""
    known = type(reported) is int and 0 < reported <= _MOST_CONTEXT_TOKENS
    return reported if known else DEFAULT_CONTEXT_TOKENS  # type: ignore[return-value]
