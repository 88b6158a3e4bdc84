"""SGLang servers, through their own interface (/generate)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from marco_search.deadlines import Call
from marco_search.runtime.base import UNKNOWN, RuntimeInfo
from marco_search.runtime.servers.calls import Failure
from marco_search.runtime.servers.server import Server, context_tokens
from marco_search.search.branches import Part


class SGLangServer(Server):
    """SGLang 0.4 and 0.5. Aborts what is cut short, and goes on from token ids."""

    liveness = "/get_model_info"

    def _describe(self) -> RuntimeInfo:
        """Model and engine behind the server."""
        model, revision = self._check(self._asking())
        try:
            server = self._get("/get_server_info", "/server_info", self._asking())
        except Failure:
            server = {}  # a router has none
        self._find_tokenizer()
        version = self._connections.quoted(str(server.get("version", UNKNOWN)))
        return RuntimeInfo(
            name="sglang",
            version=version if self._tokenizes else f"{version}, prefixes as text",
            model=model,
            revision=revision,
            context_tokens=context_tokens(
                server.get("context_length") or server.get("max_req_input_len")
            ),
            tokenizer=str(server.get("tokenizer_path") or ""),
        )

    def _identity(self, call: Call) -> tuple[str, str]:
        return self._accept(self._get("/get_model_info", "/model_info", call, self._accept))

    def _accept(self, info: Mapping[str, Any]) -> tuple[str, str]:
        return self._expect(info.get("model_path"), info.get("weight_version"))

    def _complete(
        self, body: Mapping[str, Any], parts: Sequence[Part], call: Call
    ) -> dict[str, Any]:
        if self._tokenizes:
            body = {name: value for name, value in body.items() if name != "text"}
            body["input_ids"] = self._token_ids(parts, call)
        return self._post("/generate", body, body["sampling_params"]["max_new_tokens"], call)

    def _tokenize(self, text: str, first: bool, call: Call) -> object:
        body = {"prompt": text, "add_special_tokens": first}
        return self._connections.request("/tokenize", call, body).get("tokens")

    def _abort(self, rid: str, call: Call) -> None:
        self._connections.request("/abort_request", call, {"rid": rid})

    def _try_generation(self, call: Call) -> None:
        try:
            self._connections.request("/health_generate", call)
        except Failure as failure:
            if not failure.not_found:
                raise

    def _get(
        self,
        path: str,
        newer: str,
        call: Call,
        accept: Callable[[dict[str, Any]], object] | None = None,
    ) -> dict[str, Any]:
        """SGLang 0.5 has both paths and says that the first will go."""
        try:
            return self._connections.request(path, call, accept=accept)
        except Failure as failure:
            if not failure.not_found:
                raise
        try:
            return self._connections.request(newer, call, accept=accept)
        except Failure as failure:
            if failure.not_found:
                failure.message += (
                    "; this is no SGLang server: an OpenAI-compatible one is named as "
                    "MARCO_RUNTIME=openai+http://HOST:PORT/v1"
                )
            raise
