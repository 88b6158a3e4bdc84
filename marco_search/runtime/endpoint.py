"""A backend over an SGLang server: the frontend's `RuntimeEndpoint` made fit for a service.

It adds what the frontend has no words for: a seed and a request id per branch, one pool of
connections, time limits on every call, and errors handed back as values.
"""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.chat_template import get_chat_template

from marco_search.errors import RuntimeUnavailable
from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.params import error_value, params_of

CONNECT_TIMEOUT_S = 5.0
POOL_SIZE = 512  # connections kept open: a search at full width uses one per branch
DEFAULT_CONTEXT_TOKENS = 32_768  # of Qwen2 and Marco-o1, for a server that does not say


class EndpointBackend(RuntimeEndpoint):  # type: ignore[misc]
    """Talks to one SGLang server. Raises RuntimeUnavailable if it can't be reached at first."""

    def __init__(self, base_url: str, *, timeout_s: float, api_key: str | None = None) -> None:
        # Not the parent's: it would open a connection of its own without a time limit.
        self.base_url = base_url.rstrip("/")
        self.support_concate_and_append = False
        self.chat_template = get_chat_template("default")
        self._timeout = (CONNECT_TIMEOUT_S, timeout_s)
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy setting must not come between us
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=POOL_SIZE)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"
        self.model_info: dict[str, Any] = self._get("/get_model_info")

    def describe(self) -> RuntimeInfo:
        """What the server says it serves."""
        try:
            server = self._get("/get_server_info")
        except RuntimeUnavailable:
            server = {}
        context = server.get("context_length") or server.get("max_req_input_len")
        return RuntimeInfo(
            name="sglang",
            version=str(server.get("version", "unknown")),
            model=str(self.model_info.get("model_path", "unknown")),
            revision=str(self.model_info.get("weight_version", "unknown")),
            context_tokens=int(context or DEFAULT_CONTEXT_TOKENS),
        )

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        """One completion of the executor's text; a failure is an error value."""
        body: dict[str, Any] = {
            "text": s.text_,
            "sampling_params": {"skip_special_tokens": True, **sampling_params.to_srt_kwargs()},
        }
        for name in ("return_logprob", "top_logprobs_num", "return_text_in_logprobs"):
            value = getattr(sampling_params, name, None)
            if value is not None:
                body[name] = value
        own = params_of(s)
        if own is not None:
            body["rid"] = own.rid
            body["sampling_params"]["sampling_seed"] = own.seed
        try:
            answer = self._post("/generate", body)
            return str(answer["text"]), dict(answer["meta_info"])
        except RuntimeUnavailable as error:
            return error_value("RuntimeUnavailable", str(error))
        except (KeyError, TypeError, ValueError):
            return error_value("BranchFailed", "the server's answer is not a completion")

    def commit_lazy_operations(self, s: Any) -> None:
        """Prefill the prefix, so that all children find it cached. Failing costs only time."""
        body = {"text": s.text_, "sampling_params": {"max_new_tokens": 0}}
        try:
            self._post("/generate", body)
        except RuntimeUnavailable:
            return

    def shutdown(self) -> None:
        """Drop the connections."""
        self._session.close()

    def _get(self, path: str) -> dict[str, Any]:
        return self._json("GET", path, None)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._json("POST", path, body)

    def _json(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        url = self.base_url + path
        try:
            answer = self._session.request(method, url, json=body, timeout=self._timeout)
            answer.raise_for_status()
            found = answer.json()
        except requests.RequestException as error:
            raise RuntimeUnavailable(f"{method} {url}: {error}") from None
        if not isinstance(found, dict):
            raise RuntimeUnavailable(f"{method} {url}: the answer is not a JSON object")
        return found
