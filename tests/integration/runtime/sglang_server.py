"""A local server that speaks SGLang's protocol over the toy model, and misbehaves on demand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.search.branches import BranchRequest, Expansion
from marco_search.settings import Settings
from tests.toy import generate, tokens_of

FIRST_CHARACTER = 1_000_000
_PIECES = {
    t.id: t.text
    for t in tokens_of("", "step a\nstep b\nstep c\n</Thought>\n<Output>\n1\n2\n</Output>")
}

Act = Callable[["Handler", dict[str, Any]], bool]
"""Given a /generate request, True if it has dealt with it (well or not)."""


class Server(ThreadingHTTPServer):
    """Answers /generate from the toy model, unless `act` deals with it first."""

    daemon_threads = True
    request_queue_size = 512

    handler: type[Handler]
    scheme = "http"

    def __init__(self, port: int = 0, model: str = "toy-marco-o1") -> None:
        super().__init__(("127.0.0.1", port), self.handler)
        self.model = model
        self.complete = completion
        self.act: Act = lambda handler, body: False
        self.asked: list[dict[str, Any]] = []
        self.about: dict[str, dict[str, Any]] = {}  # what it says of itself, by path
        self.missing: set[str] = set()  # paths that are not there
        self.hung = threading.Event()  # set: says what it serves, and generates nothing
        self.aborted: list[str] = []
        self.connections: dict[Any, socket.socket] = {}
        self.released = threading.Event()  # ends all waits of `act`

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The requests that generate, without those that only fill the cache."""
        return [a for a in self.asked if a["sampling_params"]["max_new_tokens"] > 0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self.server.connections[self.client_address] = self.connection
        answers: dict[str, dict[str, Any]] = {
            "/get_model_info": {"model_path": self.server.model, "weight_version": "v1"},
            "/get_server_info": {"version": "0.5.23", "context_length": 512},
        }
        answers |= self.server.about
        if self.path in self.server.missing:
            self.send({"detail": "Not Found"}, 404)
            return
        if self.path == "/health_generate":
            if self.server.hung.is_set():
                self.server.released.wait(60)
            self.raw(200, b"")
            return
        self.send(answers[self.path if self.path in answers else f"/get_{self.path[1:]}"])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.connections[self.client_address] = self.connection
        if self.path == "/abort_request":
            self.server.aborted.append(body["rid"])
            self.raw(200, b"")
            return
        if self.path == "/tokenize":
            if self.path in self.server.missing:
                self.send({"detail": "Not Found"}, 404)
            else:
                self.send({"tokens": [FIRST_CHARACTER + ord(c) for c in body["prompt"]]})
            return
        if "input_ids" in body:
            body["text"] = "".join(map(text_of, body["input_ids"]))
        self.generate(body)

    def generate(self, body: dict[str, Any]) -> None:
        self.server.asked.append(body | {"authorization": self.headers["Authorization"]})
        if self.server.hung.is_set():
            self.server.released.wait(60)
        if not self.server.act(self, body):
            self.send(self.server.complete(body))

    def send(self, answer: Any, status: int = 200, **headers: Any) -> None:
        self.raw(status, json.dumps(answer).encode(), **headers)

    def raw(self, status: int, data: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def drop(self) -> None:
        """Close the connection without another word."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""


Server.handler = Handler


def text_of(token: int) -> str:
    """What one of the toy model's tokens reads; the server's own are single characters."""
    if token >= FIRST_CHARACTER:
        return chr(token - FIRST_CHARACTER)
    return _PIECES[token]


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """What SGLang would answer."""
    parameters = body["sampling_params"]
    room = parameters["max_new_tokens"]
    tokens = generate(body["text"], parameters.get("sampling_seed", 0), room, ("1", "2"))
    texts = [t.text for t in tokens]
    matched = next((t for t in texts if t in (parameters["stop"] or ())), None) if room else None
    if matched is not None:
        tokens = tokens[: texts.index(matched) + 1]
    text = "".join(t.text for t in tokens).removesuffix(matched or "\0")
    reason = {"type": "stop", "matched": matched} if matched else {"type": "length"}
    meta = {
        "id": body["rid"],
        "finish_reason": reason,
        "prompt_tokens": len(body["text"]),
        "cached_tokens": len(body["text"]) - 1,
        "output_token_logprobs": [[t.logprob, t.id, t.text] for t in tokens],
        "output_top_logprobs": [[[p, i, None] for i, p in t.top] for t in tokens],
        "e2e_latency": 0.01,
    }
    return {"text": text, "meta_info": meta}


@contextmanager
def serving(
    port: int = 0,
    model: str = "toy-marco-o1",
    prepare: Callable[[Server], None] = lambda server: None,
    make: Callable[[int, str], Server] = Server,
) -> Iterator[Server]:
    """A running server; all its connections are closed at the end."""
    server = make(port, model)
    prepare(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stop(server)
        thread.join()


def stop(server: Server) -> None:
    """Take the server away, as a crash would."""
    server.released.set()
    server.shutdown()
    server.server_close()
    for connection in list(server.connections.values()):
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


@contextmanager
def runtime(*servers: Server | str, **settings: Any) -> Iterator[Runtime]:
    """The runtime over these servers."""
    urls = ",".join(s if isinstance(s, str) else s.url for s in servers)
    opened = open_runtime(Settings.model_validate({"MARCO_RUNTIME": urls} | settings))
    try:
        yield opened
    finally:
        opened.close()


def expansion(count: int, prefix: str = "Q", room: int = 60, first: int = 0) -> Expansion:
    """A fork of `prefix` into `count` branches with the seeds 100, 101, ..."""
    requests = [
        BranchRequest(branch_id=i, seed=100 + i, max_new_tokens=room, temperature=0.5)
        for i in range(first, first + count)
    ]
    return Expansion(node_id=0, prefix=prefix, branches=tuple(requests))


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)
