"""One SGLang server: its connections, its allowance, and whether it is healthy."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from marco_search.errors import ModelRefused
from marco_search.runtime.base import RuntimeInfo, quoting
from marco_search.runtime.reply import LARGEST_ID
from marco_search.runtime.sglang.calls import Call, Limiter
from marco_search.runtime.sglang.connections import Connections, api_key_of
from marco_search.runtime.sglang.failures import Failure, unavailable
from marco_search.search.branches import Part
from marco_search.settings import Settings

DEFAULT_CONTEXT_TOKENS = 32_768  # of Qwen2 and Marco-o1, for a server that does not say
_MOST_CONTEXT_TOKENS = 2**30
ASK_S = 10.0  # for a server to say what it serves
_ABORT_S = 2.0
# Bytes of an answer. A token comes with five candidates, each about 40 and its text.
_ANSWER, _ANSWER_A_TOKEN = 2**18, 2**11
_FAILURES = 3  # in a row that make a server unhealthy; one refused connection does too
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_TOKENIZE = "/tokenize"
_REMEMBERED = 256  # texts: a prompt for each search, and the reflection phrase


class Server:
    """Requests to one server. All methods may be called from any thread."""

    def __init__(self, url: str, settings: Settings) -> None:
        """Raises InvalidSettings for a key or a CA file that can't be used."""
        self.url = url
        self.expected: RuntimeInfo | None = None  # what it must serve, once that is known
        # A branch that takes half its time limit says that the server has too much to do.
        self.limiter = Limiter(settings.runtime_max_in_flight, settings.runtime_timeout_s / 2)
        self._connections = Connections(url, settings, self._check_changed)
        self._lock = threading.Lock()
        self._quoted = quoting(api_key_of(settings))
        self._tokenizes = False  # whether it has /tokenize
        self._ids: dict[tuple[str, bool], list[int]] = {}
        self._consecutive_failures = 0
        self._silent = False  # unhealthy because it answered nothing in time
        self._pause_s = 0.0  # 0: healthy
        self._probe_at = 0.0

    # -- requests ----------------------------------------------------------------------

    def generate(
        self, body: Mapping[str, Any], parts: Sequence[Part], call: Call
    ) -> dict[str, Any] | Failure:
        """One try of /generate, when the server's allowance has a place.

        `parts` is the text to continue in parts, where they are known (see `Expansion`).
        """
        if not self.limiter.acquire(call):
            return call.cut_short()
        began = time.monotonic()
        found: dict[str, Any] | Failure | None = None
        try:
            found = self._generate(body, parts, call)
        finally:
            overloaded = isinstance(found, Failure) and found.overloaded
            self.limiter.release(began, ok=isinstance(found, dict), overloaded=overloaded)
        if isinstance(found, Failure) and call.over:
            # Without this the server would generate on, with no caller waiting.
            soon = Call(time.monotonic() + _ABORT_S)
            self._connections.request("/abort_request", soon, {"rid": body["rid"]})
            if call.left_s <= 0:
                self._count_failure(silent=True)
        else:
            self._note(found)
        return found

    def _generate(
        self, body: Mapping[str, Any], parts: Sequence[Part], call: Call
    ) -> dict[str, Any] | Failure:
        # One that was unhealthy may have come back with another model.
        changed = None if self.healthy else self._check_changed(call)
        if changed is not None:
            return changed
        if parts and self._tokenizes:
            # As a text the prefix would be tokenised again, and not always into the tokens that
            # were generated and that the trail holds.
            ids = self._token_ids(parts, call)
            if isinstance(ids, Failure):
                return ids
            body = {name: value for name, value in body.items() if name != "text"}
            body["input_ids"] = ids
        most = _ANSWER + _ANSWER_A_TOKEN * body["sampling_params"]["max_new_tokens"]
        return self._connections.request("/generate", call, body, most)

    def _token_ids(self, parts: Sequence[Part], call: Call) -> list[int] | Failure:
        """The ids of a prefix; the server itself says what a text is in tokens."""
        ids: list[int] = []
        for i, part in enumerate(parts):
            found = self._text_ids(part, i == 0, call) if isinstance(part, str) else part
            if isinstance(found, Failure):
                return found
            ids += found
        return ids

    def _text_ids(self, text: str, first: bool, call: Call) -> list[int] | Failure:
        known = self._ids.get((text, first))
        if known is not None:
            return known
        found = self._tokenize(text, first, call)
        if not isinstance(found, Failure):
            if len(self._ids) >= _REMEMBERED:
                self._ids.clear()
            self._ids[text, first] = found
        return found

    def _tokenize(self, text: str, first: bool, call: Call) -> list[int] | Failure:
        """Only the first text may get what begins a sequence, as it would if it were sent."""
        body = {"prompt": text, "add_special_tokens": first}
        answer = self._connections.request(_TOKENIZE, call, body)
        if isinstance(answer, Failure):
            return answer
        ids = answer.get("tokens")
        if isinstance(ids, list) and all(type(i) is int and 0 <= i <= LARGEST_ID for i in ids):
            return ids
        return unavailable(f"{self.url}{_TOKENIZE}: the answer has no token ids")

    # -- what it serves ----------------------------------------------------------------

    def describe(self) -> RuntimeInfo | Failure:
        """Model and engine behind the server."""
        model = self._model_info(Call(time.monotonic() + ASK_S))
        if isinstance(model, Failure):
            return model
        server = self._get("/get_server_info", "/server_info", Call(time.monotonic() + ASK_S))
        if isinstance(server, Failure):
            server = {}  # a router has none
        found = self._tokenize("a", True, Call(time.monotonic() + ASK_S))
        self._tokenizes = isinstance(found, list)
        version = self._quoted(str(server.get("version", "unknown")))
        context: Any = server.get("context_length") or server.get("max_req_input_len")
        known = type(context) is int and 0 < context <= _MOST_CONTEXT_TOKENS
        name, revision = self._model_of(model)
        return RuntimeInfo(
            name="sglang",
            version=version if self._tokenizes else f"{version}, prefixes as text",
            model=name,
            revision=revision,
            context_tokens=context if known else DEFAULT_CONTEXT_TOKENS,
        )

    def _check_changed(self, call: Call) -> Failure | None:
        """A server that was away may have been started again, with another model."""
        found = self._model_info(call) if self.expected is not None else None
        return found if isinstance(found, Failure) else None

    def _model_info(self, call: Call) -> dict[str, Any] | Failure:
        """What the server says of its model; this decides whether it is healthy."""
        found = self._get("/get_model_info", "/model_info", call)
        if not isinstance(found, Failure) and self.expected:
            serves, wanted = self._model_of(found), (self.expected.model, self.expected.revision)
            if serves != wanted:
                message = f"{self.url} serves {_named(serves)} now, it was {_named(wanted)}"
                found = Failure(kind=ModelRefused, message=message, retryable=True)
        if not isinstance(found, Failure) and self._silent:
            # It answered this before, and nothing that was to be generated.
            alive = self._connections.request("/health_generate", call)
            if isinstance(alive, Failure) and not alive.not_found:
                found = alive
        if isinstance(found, Failure):
            self.mark_unhealthy()
        else:
            self._note(found)
        return found

    def _model_of(self, info: Mapping[str, Any]) -> tuple[str, str]:
        """(model, revision) in an answer of /get_model_info."""
        model, revision = (
            str(info.get(name) or "unknown") for name in ("model_path", "weight_version")
        )
        return self._quoted(model), self._quoted(revision)

    def _get(self, path: str, newer: str, call: Call) -> dict[str, Any] | Failure:
        """SGLang 0.5 has both paths and says that the first will go."""
        found = self._connections.request(path, call)
        if isinstance(found, Failure) and found.not_found:
            return self._connections.request(newer, call)
        return found

    def close(self) -> None:
        """Drop the connections."""
        self._connections.close()

    # -- health ------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """False from when it stopped answering until it answers again."""
        return self._pause_s == 0

    def try_probe(self) -> bool:
        """True for one caller, once an unhealthy server has had its pause: `describe` it."""
        with self._lock:
            now = time.monotonic()
            if self.healthy or now < self._probe_at:
                return False
            self._probe_at = now + ASK_S + self._pause_s
            return True

    def mark_unhealthy(self) -> None:
        """Leave it alone for a while, longer every time."""
        with self._lock:
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._probe_at = time.monotonic() + self._pause_s

    def _note(self, found: dict[str, Any] | Failure) -> None:
        if isinstance(found, Failure) and found.retryable and not found.overloaded:
            self._count_failure(unreachable=found.unreachable)
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
            self.mark_unhealthy()


def _named(model: tuple[str, str]) -> str:
    return f"{model[0]} ({model[1]})"
