"""A local server that speaks as vLLM, llama.cpp, llama-cpp-python or TGI do, over a small model.

Requests are put into SGLang's terms, so that `act` is the same for all servers, and an answer in
SGLang's terms is sent in the shape of the server that this one stands for.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

from marco_search.pocket import MODEL_DIR
from marco_search.runtime.embedded.backend import EmbeddedBackend, load_model
from marco_search.runtime.program import PARAMS, BranchParams
from marco_search.search.branches import MARCO_O1, Part
from tests.integration.runtime.sglang_server import (
    FIRST_CHARACTER,
    Handler,
    Server,
    completion,
    text_of,
)
from tests.toy import tokens_of

Body = dict[str, Any]
SHAPES = ("vllm", "llama.cpp", "llama-cpp-python", "tgi")
PROBE = "The"
"""The prompt of the completion that is asked for at the start; `act` does not see it."""

_OWNERS = {"vllm": "vllm", "llama.cpp": "llamacpp", "llama-cpp-python": "me", "tgi": "toy"}


def ends_at_once(body: Body) -> Body:
    """What SGLang would answer where the model ends its turn without a word."""
    answer = completion(body)
    meta = answer["meta_info"]
    meta["finish_reason"] = {"type": "stop", "matched": 2}
    end = [-0.1, 2, ""]
    meta["output_token_logprobs"] = [end]
    meta["output_top_logprobs"] = [[end, *meta["output_top_logprobs"][0][1:]]]
    return answer | {"text": ""}


class Model(Protocol):
    """What is served."""

    def complete(self, body: Body) -> Body:
        """What SGLang would answer to `body`."""
        ...

    def ids(self, text: str) -> list[int]:
        """A text in tokens."""
        ...

    def text(self, token: int) -> str:
        """A token by itself."""
        ...


class Toy:
    """The toy model. Its tokens have ids by text; the server's own are single characters."""

    complete = staticmethod(completion)

    def ids(self, text: str) -> list[int]:
        return [FIRST_CHARACTER + ord(c) for c in text]

    def text(self, token: int) -> str:
        try:
            return text_of(token)
        except KeyError:
            return f"other {token}"


class Pocket:
    """The pocket model in the embedded engine."""

    def __init__(self) -> None:
        self._model = load_model(MODEL_DIR)
        self._backend = EmbeddedBackend(self._model, max_rows=8, cache_bytes=2**26)

    def complete(self, body: Body) -> Body:
        asked = body["sampling_params"]
        prefix: Part = tuple(body["input_ids"]) if "input_ids" in body else body["text"]
        params = BranchParams(
            seed=asked["sampling_seed"], rid="", deadline=time.monotonic() + 60, parts=(prefix,)
        )
        text, meta = self._backend.generate(
            SimpleNamespace(text_=body["text"], variables={PARAMS: params}),
            SimpleNamespace(**asked),
        )
        return {"text": text, "meta_info": meta}

    def ids(self, text: str) -> list[int]:
        return list(map(int, self._model.tokenizer.encode(text)))

    def text(self, token: int) -> str:
        return self._model.tokenizer.alone(token)

    def close(self) -> None:
        self._backend.shutdown()


class OpenAIServer(Server):
    """Stands for a server of `shape`."""

    scheme = "openai+http"

    def __init__(self, shape: str, model: Model, port: int, name: str) -> None:
        self.shape, self.serves = shape, model
        super().__init__(port, name)
        self.complete = model.complete
        self.names = [name]
        self.template: str | None = None  # for chats
        self.begins = ""  # what it puts before a sequence
        self.sent: Body = {}  # the last completion that it was asked for
        self.probed: Callable[[Body], Any] = lambda answer: None  # changes the answer to the probe
        self.strange: Callable[[Body], Any] = lambda answer: None  # changes all other answers

    @property
    def url(self) -> str:
        return super().url + "/v1"


def as_server(shape: str, model: Model | None = None) -> Callable[[int, str], Server]:
    """What `serving` makes a server with."""
    return lambda port, name: OpenAIServer(shape, model or Toy(), port, name)


class OpenAIHandler(Handler):
    server: OpenAIServer
    asking: Body

    def do_GET(self) -> None:  # noqa: N802  # http.server's name
        self.server.connections[self.client_address] = self.connection
        shape, names = self.server.shape, self.server.names
        card: Body = {"object": "model", "owned_by": _OWNERS[shape]}
        if shape == "vllm":
            card |= {"max_model_len": 512, "root": "/models/toy"}
        if shape == "llama.cpp":
            card |= {"meta": {"n_params": 7, "size": 28, "n_ctx_train": 1024}}
        answers: dict[tuple[str, str], Body] = {
            (shape, "/v1/models"): {"data": [card | {"id": name} for name in names]},
            ("vllm", "/version"): {"version": "0.11.0"},
            ("llama.cpp", "/props"): {
                "build_info": "b6000-x", "default_generation_settings": {"n_ctx": 512},
                "chat_template": self.server.template, "bos_token": "^",
            },
            ("llama-cpp-python", "/openapi.json"): {"info": {"version": "0.3.36"}},
            ("tgi", "/info"): {"version": "3.3.4", "model_sha": "v1", "max_total_tokens": 512},
        }  # fmt: skip
        found = answers.get((shape, self.path))
        self.send({"detail": "Not Found"} if found is None else found, 200 if found else 404)

    def do_POST(self) -> None:  # noqa: N802  # http.server's name
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.connections[self.client_address] = self.connection
        model, shape = self.server.serves, self.server.shape
        if self.path in self.server.missing:
            self.send({"detail": "Not Found"}, 404)
        elif self.path == "/tokenize" and shape in ("vllm", "llama.cpp"):
            first = body["add_special_tokens" if shape == "vllm" else "add_special"]
            text = body["prompt" if shape == "vllm" else "content"]
            self.send({"tokens": model.ids(self.server.begins * first + text)})
        elif self.path == "/detokenize" and shape == "vllm":
            self.send({"prompt": "".join(map(model.text, body["tokens"]))})
        elif self.path == ("/generate" if shape == "tgi" else "/v1/completions"):
            self._complete(body)
        else:
            self.send({"detail": "Not Found"}, 404)

    def _complete(self, body: Body) -> None:
        self.asking = body
        if "grammar" not in body:
            self.server.sent = body
        prompt = body.get("prompt", body.get("inputs"))
        asked = body.get("parameters", body)
        found: Body = {
            "rid": "",
            "text": prompt,
            "sampling_params": {
                "max_new_tokens": asked["max_new_tokens" if "inputs" in body else "max_tokens"],
                "stop": asked.get("stop"),
                "sampling_seed": asked["seed"],
                "temperature": asked.get("temperature", 0.0),
                "top_p": asked.get("top_p", 1.0),
            },
        }
        if isinstance(prompt, list):
            found |= {"input_ids": prompt, "text": "".join(map(self.server.serves.text, prompt))}
        if "grammar" in body:
            self.send(self._under_grammar(found["text"]))
        elif prompt == PROBE:
            if self.server.hung.is_set():
                self.server.released.wait(60)
            self.send(self.server.complete(found))
        else:
            self.generate(found)

    def _under_grammar(self, prefix: str) -> Body:
        """One of the texts that the grammar allows, and the end of the sequence."""
        found = re.findall(r'"((?:[^"\\]|\\.)*)"', self.asking["grammar"])
        texts = [re.sub(r"\\U(\w{8})", lambda m: chr(int(m[1], 16)), text) for text in found]
        thinking = MARCO_O1.end_of_thought not in prefix
        text = next((t for t in texts if thinking == t.endswith(MARCO_O1.end_of_thought)), texts[0])
        tokens = tokens_of(prefix, text)
        rows = [[t.logprob, i, t.text] for t in tokens for i in self.server.serves.ids(t.text)[:1]]
        tops = [
            [row, *([p, i, None] for i, p in t.top[1:])]
            for row, t in zip(rows, tokens, strict=True)
        ]
        meta = {
            "finish_reason": {"type": "stop", "matched": 2},
            "output_token_logprobs": [*rows, [-0.1, 2, ""]],
            "output_top_logprobs": [*tops, tops[-1]],
        }
        return {"text": text, "meta_info": meta}

    def send(self, answer: Any, status: int = 200, **headers: Any) -> None:
        if status == 200 and isinstance(answer, dict) and isinstance(answer.get("meta_info"), dict):
            answer = self._shaped(answer)
            probe = self.asking.get("prompt", self.asking.get("inputs")) == PROBE
            (self.server.probed if probe else self.server.strange)(answer)
        super().send(answer, status, **headers)

    def _shaped(self, answer: Body) -> Body:
        """An answer of SGLang's as this server has it."""
        text, meta, shape = answer["text"], answer["meta_info"], self.server.shape
        rows, tops = meta.get("output_token_logprobs"), meta.get("output_top_logprobs")
        reason = meta.get("finish_reason") or {}
        kind, matched = reason.get("type"), reason.get("matched")
        if rows is None or tops is None:
            return {"choices": [{"text": text, "logprobs": None, "finish_reason": kind}]}
        tops = [
            top and [[p, i, self.server.serves.text(i) if t is None else t] for p, i, t in top]
            for top in tops
        ]
        if shape == "tgi":
            return self._details(text, rows, tops, kind, matched)
        usage = {"prompt_tokens": meta.get("prompt_tokens"), "completion_tokens": len(rows)}
        choice: Body = {"text": text, "finish_reason": kind}
        if shape == "vllm":
            choice["stop_reason"] = matched
        if shape == "llama.cpp":
            usage["prompt_tokens_details"] = {"cached_tokens": meta.get("cached_tokens")}
            if isinstance(matched, str):
                left = max(0, len(rows) - len(tokens_of("", matched)))
                rows, tops = rows[:left], tops[:left]
            content = [
                _entry(row) | {"top_logprobs": list(map(_entry, top))}
                for row, top in zip(rows, tops, strict=True)
            ]
            choice["logprobs"] = {"content": content}
        else:
            if shape == "llama-cpp-python" and isinstance(matched, int):
                rows, tops = rows[:-1], tops[:-1]  # the end of the sequence is left out
                usage["completion_tokens"] = len(rows)
            ids = self.asking.get("return_tokens_as_token_ids")
            name = (lambda row: f"token_id:{row[1]}") if ids else (lambda row: row[2])
            choice["logprobs"] = {
                "tokens": list(map(name, rows)),
                "token_logprobs": [row[0] for row in rows],
                "top_logprobs": [top and {name(c): c[0] for c in top} for top in tops],
            }
        return {"choices": [choice], "usage": usage}

    @staticmethod
    def _details(text: str, rows: Any, tops: Any, kind: Any, matched: Any) -> Body:
        def token(row: Any) -> Body:
            return {"id": row[1], "text": row[2], "logprob": row[0], "special": False}

        ends = {str: "stop_sequence", int: "eos_token"}
        return {
            "generated_text": text + (matched if isinstance(matched, str) else ""),
            "details": {
                "finish_reason": ends.get(type(matched), kind),
                "generated_tokens": len(rows),
                "tokens": list(map(token, rows)),
                "top_tokens": [top and list(map(token, top)) for top in tops],
            },
        }


OpenAIServer.handler = OpenAIHandler


def _entry(row: Any) -> Body:
    return {"id": row[1], "token": row[2], "bytes": list(row[2].encode()), "logprob": row[0]}
