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

    def reset(self) -> None:
        """Empty cache, counters at zero."""
        self._ask("/reset")

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


def _application() -> web.Application:
    state = {"engine": Engine()}
    tasks: list[asyncio.Task[None]] = []

    async def start() -> None:
        for task in tasks:
            task.cancel()
        state["engine"] = Engine()
        tasks[:] = [asyncio.create_task(state["engine"].run())]

    async def generate(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        text, parameters = body["text"], body["sampling_params"]
        if parameters["max_new_tokens"] == 0:
            prompt, cached = await state["engine"].generate(text, "", 0)
            return web.json_response({"text": "", "meta_info": {"prompt_tokens": prompt}})
        key = texts.completion_of(text, parameters["sampling_seed"])
        written, tokens, data = texts.completion(*key)
        prompt, cached = await state["engine"].generate(text, written, tokens)
        known = f', "prompt_tokens": {prompt}, "cached_tokens": {cached}, "e2e_latency": 0.0}}}}'
        return web.Response(body=data + known.encode(), content_type="application/json")

    async def model_info(_: web.Request) -> web.Response:
        return web.json_response({"model_path": MODEL, "weight_version": "0"})

    async def server_info(_: web.Request) -> web.Response:
        return web.json_response({"version": "0", "context_length": 32768})

    async def counters(_: web.Request) -> web.Response:
        return web.json_response(dataclasses.asdict(state["engine"].counters))

    async def reset(_: web.Request) -> web.Response:
        await start()
        return web.json_response({})

    async def started(_: web.Application) -> None:
        await start()

    application = web.Application()
    application.on_startup.append(started)
    application.add_routes(
        [
            web.post("/generate", generate),
            web.get("/get_model_info", model_info),
            web.get("/get_server_info", server_info),
            web.get("/counters", counters),
            web.get("/reset", reset),
        ]
    )
    return application
