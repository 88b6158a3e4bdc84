"""The simulated engine behind SGLang's HTTP interface, in a process of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import multiprocessing
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from aiohttp import web

from ops.bench.engine import texts
from ops.bench.engine.simulator import Counters, Engine

MODEL = "simulated"


class Simulated:
    """A running simulated server."""

    def __init__(self, url: str, process: BaseProcess) -> None:
        self.url = url
        self._process = process

    def reset(self, refuse_every: int = 0) -> None:
        """Empty cache, counters at zero. Of so many requests one is refused from now on."""
        self._ask(f"/reset?refuse_every={refuse_every}")

    def counters(self) -> Counters:
        """What the engine has done since the last reset."""
        return Counters(**self._ask("/counters"))

    def _ask(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@contextmanager
def simulated() -> Iterator[Simulated]:
    """A server that runs inside the block."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(listening,), daemon=True
    )
    process.start()
    port = listening.getsockname()[1]
    listening.close()
    try:
        yield Simulated(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.join()


def _serve(listening: socket.socket) -> None:
    texts.make_all()
    web.run_app(_application(), sock=listening, print=None, access_log=None)


class _Handlers:
    """SGLang's own interface, and of OpenAI's what the peers speak (ops/bench/peers)."""

    def __init__(self) -> None:
        self._engine = Engine()
        self._task: asyncio.Task[None] | None = None
        self._refuse_every = 0
        self._asked = 0  # requests
        self._made = 0  # chat completions

    async def start(self, _: web.Application) -> None:
        if self._task:
            self._task.cancel()
        self._engine, self._asked, self._made = Engine(), 0, 0
        self._task = asyncio.create_task(self._engine.run())

    async def generate(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        text, parameters = body["text"], body["sampling_params"]
        if parameters["max_new_tokens"] == 0:
            prompt, cached = await self._engine.generate(text, "", 0)
            return web.json_response({"text": "", "meta_info": {"prompt_tokens": prompt}})
        if self._refuses():
            return _refusal()
        key = texts.completion_of(text, parameters["sampling_seed"])
        written, tokens, data = texts.completion(*key)
        prompt, cached = await self._engine.generate(text, written, tokens)
        known = f', "prompt_tokens": {prompt}, "cached_tokens": {cached}, "e2e_latency": 0.0}}}}'
        return web.Response(body=data + known.encode(), content_type="application/json")

    async def chat(self, request: web.Request) -> web.Response:
        """Its clients send no seed: the variants are taken in turn."""
        body = json.loads(await request.read())
        if self._refuses():
            return _refusal()
        prompt = texts.chat_prompt(body["messages"])
        stop = body.get("stop") or ()
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        most = body.get("max_completion_tokens") or body.get("max_tokens") or 0
        made = [
            texts.chat_completion(*texts.completion_of(prompt, self._made + i), stop, most)
            for i in range(body.get("n") or 1)
        ]
        self._made += len(made)
        known = await asyncio.gather(
            *(self._engine.generate(prompt, text, tokens) for text, tokens, _ in made)
        )
        written = sum(tokens for _, tokens, _ in made)
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": why}
            for i, (text, _, why) in enumerate(made)
        ]
        usage = {"prompt_tokens": known[0][0], "completion_tokens": written}
        usage["total_tokens"] = sum(usage.values())
        about = {"id": "chat", "object": "chat.completion", "created": 0, "model": MODEL}
        return web.json_response(about | {"choices": choices, "usage": usage})

    def _refuses(self) -> bool:
        self._asked += 1
        return bool(self._refuse_every) and self._asked % self._refuse_every == 0

    async def counters(self, _: web.Request) -> web.Response:
        return web.json_response(dataclasses.asdict(self._engine.counters))

    async def reset(self, request: web.Request) -> web.Response:
        await self.start(request.app)
        self._refuse_every = int(request.query.get("refuse_every", 0))
        return web.json_response({})


def _refusal() -> web.Response:
    return web.json_response({"error": {"message": "refused, as the bench asks"}}, status=400)


async def _model_info(_: web.Request) -> web.Response:
    return web.json_response({"model_path": MODEL, "weight_version": "0"})


async def _server_info(_: web.Request) -> web.Response:
    return web.json_response({"version": "0", "context_length": 32768})


def _application() -> web.Application:
    handlers = _Handlers()
    application = web.Application()
    application.on_startup.append(handlers.start)
    application.add_routes(
        [
            web.post("/generate", handlers.generate),
            web.post("/v1/chat/completions", handlers.chat),
            web.get("/get_model_info", _model_info),
            web.get("/get_server_info", _server_info),
            web.get("/counters", handlers.counters),
            web.get("/reset", handlers.reset),
        ]
    )
    return application
