"""One SGLang server: its connections, its allowance, and whether it is well."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from marco_search.errors import ModelRefused
from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.quoting import quoting
from marco_search.runtime.sglang.calls import Call
from marco_search.runtime.sglang.failures import Failure, cut_short
from marco_search.runtime.sglang.http import Access, Connections
from marco_search.runtime.sglang.limits import Limiter
from marco_search.runtime.sglang.prompts import PromptIds

DEFAULT_CONTEXT_TOKENS = 32_768  # of Qwen2 and Marco-o1, for a server that does not say
_MOST_CONTEXT_TOKENS = 2**30
ASK_S = 10.0  # for a server to say what it serves
_ABORT_S = 2.0
# Bytes of an answer. A token comes with five candidates, each about 40 and its text.
_ANSWER, _ANSWER_A_TOKEN = 2**18, 2**11
_STRIKES = 3  # failures in a row that make a server unwell; one refused connection does too
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class Server:
    """Requests to one server. All methods may be called from any thread."""

    def __init__(self, url: str, access: Access, *, most_in_flight: int, slow_s: float) -> None:
        self.url = url
        self.expected: RuntimeInfo | None = None  # what it must serve, once that is known
        self.limiter = Limiter(most_in_flight, slow_s)
        self._connections = Connections(url, access, self._look_for_another)
        self._lock = threading.Lock()
        self._prompts = PromptIds(url, self._connections.post)
        self._quoted = quoting(access.api_key)
        self._strikes = 0
        self._silent = False  # unwell because it answered nothing in time
        self._pause_s = 0.0  # 0: well
        self._look_again_at = 0.0

    # -- requests ----------------------------------------------------------------------

    def generate(self, body: Mapping[str, Any], call: Call) -> dict[str, Any] | Failure:
        """One try of /generate, when the server's allowance has a place."""
        if not self.limiter.acquire(call):
            return cut_short(call.left_s <= 0)
        began = time.monotonic()
        found: dict[str, Any] | Failure | None = None
        try:
            most = _ANSWER + _ANSWER_A_TOKEN * body["sampling_params"]["max_new_tokens"]
            found = self._looked_at(call)
            if found is None:
                found = self._prompts.sent(body, call)
            if not isinstance(found, Failure):
                found = self._connections.post("/generate", found, call, most)
        finally:
            ok = isinstance(found, dict)
            busy = isinstance(found, Failure) and found.busy
            self.limiter.release(began, ok=ok, busy=busy)
        if isinstance(found, Failure) and call.over:
            # The server would go on with what nobody waits for.
            self._connections.post(
                "/abort_request", {"rid": body["rid"]}, Call(time.monotonic() + _ABORT_S)
            )
            if call.left_s <= 0:
                self._strike(silent=True)
        else:
            self._note(found)
        return found

    def _looked_at(self, call: Call) -> Failure | None:
        """A server that was away may have come back with another model: seen before it is used."""
        if self.well or self.expected is None:
            return None
        found = self._model_info(call)
        return found if isinstance(found, Failure) else None

    def _look_for_another(self, call: Call) -> Failure | None:
        """A server that closed its connections may have been started anew, with another model."""
        found = self._model_info(call) if self.expected is not None else None
        return found if isinstance(found, Failure) else None

    def _model_info(self, call: Call) -> dict[str, Any] | Failure:
        """What the server says of its model; this decides whether it is well."""
        found = self._get("/get_model_info", "/model_info", call)
        if not isinstance(found, Failure) and self.expected:
            serves, wanted = self._model_of(found), (self.expected.model, self.expected.revision)
            if serves != wanted:
                message = f"{self.url} serves {_named(serves)} now, it was {_named(wanted)}"
                found = Failure(kind=ModelRefused, message=message, again=True)
        if not isinstance(found, Failure) and self._silent:
            # It answered this before, and nothing that was to be generated.
            alive = self._connections.get("/health_generate", call)
            if isinstance(alive, Failure) and not alive.missing:
                found = alive
        if isinstance(found, Failure):
            self.unwell()
        else:
            self._note(found)
        return found

    def describe(self) -> RuntimeInfo | Failure:
        """Model and engine behind the server."""
        model = self._model_info(Call(time.monotonic() + ASK_S))
        if isinstance(model, Failure):
            return model
        server = self._get("/get_server_info", "/server_info", Call(time.monotonic() + ASK_S))
        if isinstance(server, Failure):
            server = {}  # a router has none
        self._prompts.look(Call(time.monotonic() + ASK_S))
        version = self._quoted(str(server.get("version", "unknown")))
        context: Any = server.get("context_length") or server.get("max_req_input_len")
        known = type(context) is int and 0 < context <= _MOST_CONTEXT_TOKENS
        return RuntimeInfo(
            name="sglang",
            version=version if self._prompts.known else f"{version}, prefixes as text",
            model=self._model_of(model)[0],
            revision=self._model_of(model)[1],
            context_tokens=context if known else DEFAULT_CONTEXT_TOKENS,
        )

    def _model_of(self, info: Mapping[str, Any]) -> tuple[str, str]:
        """(model, revision) in an answer of /get_model_info."""
        model, revision = (
            str(info.get(name) or "unknown") for name in ("model_path", "weight_version")
        )
        return self._quoted(model), self._quoted(revision)

    def _get(self, path: str, newer: str, call: Call) -> dict[str, Any] | Failure:
        """SGLang 0.5 has both paths and says that the first will go."""
        found = self._connections.get(path, call)
        if isinstance(found, Failure) and found.missing:
            return self._connections.get(newer, call)
        return found

    def close(self) -> None:
        """Drop the connections."""
        self._connections.close()

    # -- health ------------------------------------------------------------------------

    @property
    def well(self) -> bool:
        """False from when it stopped answering until it answers again."""
        return self._pause_s == 0

    def claim_look(self) -> bool:
        """True for one caller, once an unwell server has had its pause: look at it again."""
        with self._lock:
            now = time.monotonic()
            if self.well or now < self._look_again_at:
                return False
            self._look_again_at = now + ASK_S + self._pause_s
            return True

    def unwell(self) -> None:
        """Leave it alone for a while, longer every time."""
        with self._lock:
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._look_again_at = time.monotonic() + self._pause_s

    def _note(self, found: dict[str, Any] | Failure) -> None:
        if isinstance(found, Failure) and found.again and not found.busy:
            self._strike(gone=found.gone)
            return
        with self._lock:
            self._strikes = 0
            self._pause_s = 0.0
            self._silent = False

    def _strike(self, *, gone: bool = False, silent: bool = False) -> None:
        """Count a failure; `gone`: no connection, `silent`: no answer until the deadline."""
        with self._lock:
            self._strikes += 1
            down = self.well and (gone or self._strikes >= _STRIKES)
            self._silent |= down and silent
        if down:
            self.unwell()


def _named(model: tuple[str, str]) -> str:
    return f"{model[0]} ({model[1]})"
