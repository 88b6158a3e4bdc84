"""A simulated model: its texts, a runtime that answers at once, and an SGLang server.

The server batches continuously and has a prefix cache, in time but without a model. One step takes
STEP_S + RUNNING_S x (sequences running) + PREFILL_S x (prompt tokens that are not in the cache).
The figures are computed, not measured: Qwen2-7B in bfloat16 on one A100 80 GB SXM, from its data
sheet (2,039 GB/s, 312 TFLOP/s) and the model's config.json (7.62e9 parameters, 28 layers,
4 key-value heads of 128), at 70 % of either peak.

- STEP_S: the weights are read once, 15.2 GB / 1,427 GB/s = 10.7 ms
- RUNNING_S: 57 kB of keys and values a token x 800 tokens / 1,427 GB/s = 0.03 ms, and
  2 x 7.62e9 operations / 218 TFLOP/s = 0.07 ms
- PREFILL_S: 2 x 7.62e9 operations / 218 TFLOP/s = 0.07 ms a token

At 256 sequences that is 7,000 tokens a second.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import time
import urllib.request
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, product, takewhile
from random import Random
from typing import Any

from aiohttp import web

from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.reply import read_completion
from marco_search.search.branches import (
    MARCO_O1,
    TOP_K,
    Branch,
    Expansion,
    Finish,
    Message,
    ReflectionPlacement,
    Segment,
)

STEP_S, RUNNING_S, PREFILL_S = 10.7e-3, 0.10e-3, 0.07e-3
MAX_RUNNING = 1024
CHARACTERS_A_TOKEN = 4
BLOCK = 16  # characters that are cached together
STEPS_A_WAIT = 8  # of the engine, while the number of running sequences is taken as constant
VARIANTS = 16
ABOUT = {
    "model_path": "simulated-marco-o1",
    "weight_version": "0",
    "version": "0",
    "context_length": 32768,
}
_ASSISTANT, _THOUGHT = "<|im_start|>assistant\n", "<Thought>\n"
_WORDS = ("so", "the", "sum", "of", "all", "that", "is", "left", "then", "we", "add", "two", "more")
# As long as a problem of MGSM.
_QUESTION = (
    "Number {i}. Every day, Wendi feeds each of her chickens three cups of mixed chicken feed, "
    "containing seeds, mealworms and vegetables to help keep them healthy. She gives the chickens "
    "their feed in three separate meals. In the morning, she gives her flock 15 cups of feed, in "
    "the afternoon another 25 cups. How many cups does she need in the final meal of the day?"
)


def job(i: int, strategy: Any, rollouts: int, reflection: Any = "never") -> ReasoningJob:
    """The i-th job. It uses its whole budget, so that every run does the same work."""
    options = SearchOptions(
        strategy=strategy, rollouts=rollouts, seed=i, early_stop=False, reflection=reflection
    )
    return ReasoningJob(question=_QUESTION.format(i=i), options=options)


@cache
def pieces(variant: int, steps: int) -> list[str]:
    """The tokens of a completion. A step has 12 to 24, as in a word problem of MGSM."""
    random = Random(f"{variant} {steps}")
    found: list[str] = []
    for _ in range(steps):
        found += [f" {random.choice(_WORDS)}" for _ in range(random.randrange(12, 25))]
        found[-1] += "\n"
    if steps:
        found.append(MARCO_O1.end_of_thought)
    return [*found, "\n", "<Output>", "\n", str(random.randrange(3)), "\n", MARCO_O1.end_of_output]


def completion_of(prefix: str, seed: int) -> tuple[int, int]:
    """(variant, steps left to write): thoughts have 6 to 11 steps, those of the prefix included."""
    variant = seed % VARIANTS
    turn = prefix[prefix.rfind(_ASSISTANT) + len(_ASSISTANT) :]
    if MARCO_O1.end_of_thought in turn:
        return variant, 0
    return variant, max(1, 6 + variant % 6 - (turn.count("\n") - 1))


@cache
def reply(variant: int, steps: int) -> str:
    """SGLang's answer as JSON, up to the numbers that depend on the prompt.

    A token has the same scores wherever it is written.
    """
    chosen, candidates = [], []
    for piece in pieces(variant, steps):
        random = Random(piece)
        candidates.append(
            [[-3 * random.random(), 2000 + k, random.choice(_WORDS)] for k in range(TOP_K)]
        )
        token_id = 10_000 + zlib.crc32(piece.encode()) % 90_000
        chosen.append([-random.random(), token_id, piece])
    meta = {
        "finish_reason": {"type": "stop", "matched": MARCO_O1.end_of_output},
        "completion_tokens": len(chosen),
        "output_token_logprobs": chosen,
        "output_top_logprobs": candidates,
    }
    text = "".join(pieces(variant, steps)).removesuffix(MARCO_O1.end_of_output)
    return json.dumps({"text": text, "meta_info": meta}).removesuffix("}}")


def chat_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """The messages in ChatML, with the thought opened; one in the last message is continued."""
    *before, last = messages
    asked, _, thought = last["content"].partition(_THOUGHT)
    turns = [(m["role"], m["content"]) for m in before] + [(last["role"], asked)]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return text + _ASSISTANT + _THOUGHT + thought


def completion(variant: int, steps: int, stop: str = "") -> tuple[str, int]:
    """(text up to a stop string, number of tokens)."""
    text, written = "", pieces(variant, steps)
    for count, piece in enumerate(written, 1):
        text += piece
        if stop and stop in text:
            return text[: text.index(stop)], count
    return text, len(written)


@dataclass
class InstantRuntime:
    """A runtime that answers at once, and measures the time it takes itself."""

    clock: Callable[[], float] = time.perf_counter
    seconds: float = 0.0
    info = RuntimeInfo(
        name="instant", version="0", model="instant-marco-o1", revision="0", context_tokens=32768
    )

    def render(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None) -> str:
        """A chat prompt in which the texts find where the answer begins."""
        return "".join(m.content for m in messages) + _ASSISTANT

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """One prepared branch a request."""
        began, found = self.clock(), []
        for prefix, request in ((e.prefix, r) for e in expansions for r in e.branches):
            segments = [_segment(*completion_of(prefix, request.seed))]
            if request.reflect is ReflectionPlacement.FIRST:
                segments.insert(0, Segment(MARCO_O1.reflection + "\n"))
            found.append(
                Branch(branch_id=request.branch_id, segments=tuple(segments), finish=Finish.STOP)
            )
        self.seconds += self.clock() - began
        return found

    def close(self) -> None:
        """Nothing to close, and nothing is ever in flight."""

    abort = close


@cache
def _segment(variant: int, steps: int) -> Segment:
    answer = json.loads(reply(variant, steps) + "}}")
    tokens = read_completion(answer["text"], answer["meta_info"]).tokens
    return Segment("".join(pieces(variant, steps)), tokens)


Counters = defaultdict[str, float]
"""requests; commits, which only fill the cache; tokens: generated, prompt, cached; peak_running;
planned_s and late_s: time of all requests as planned, and by which the simulation ran behind."""


class Engine:
    """Takes the time of an engine with a prefix cache. Nothing is evicted."""

    def __init__(self) -> None:
        self.counters: Counters = defaultdict(float)
        self._blocks: set[int] = set()
        self._running = 0
        self._prefill_s = 0.0  # of all requests: while the engine prefills, nothing is decoded
        self._slots = asyncio.Semaphore(MAX_RUNNING)

    async def generate(self, prompt: str, completion: str, tokens: int) -> tuple[int, int]:
        """Wait as long as the engine would take. Returns (prompt tokens, cached of those)."""
        async with self._slots:
            known = sum(1 for _ in takewhile(self._blocks.__contains__, _blocks(prompt)))
            asked, cached = (n // CHARACTERS_A_TOKEN for n in (len(prompt), known * BLOCK))
            self._running += 1
            counters, prefill_s = self.counters, PREFILL_S * (asked - cached)
            counters["requests"] += 1
            counters["peak_running"] = max(counters["peak_running"], self._running)
            counters["generated"] += tokens
            if tokens:
                counters["prompt"] += asked
                counters["cached"] += cached
            else:
                counters["commits"] += 1
            self._prefill_s += prefill_s
            await self._take(STEP_S + prefill_s)
            self._blocks.update(_blocks(prompt))
            for begun in range(1, tokens, STEPS_A_WAIT):
                step_s = STEP_S + RUNNING_S * self._running
                await self._take(min(STEPS_A_WAIT, tokens - begun) * step_s)
            self._blocks.update(_blocks(prompt + completion))
            self._running -= 1
        return asked, cached

    async def _take(self, planned_s: float) -> None:
        """Sleep, and for as long as other requests are prefilled meanwhile."""
        seen, due = self._prefill_s, time.monotonic()
        while planned_s > 0:
            due += planned_s
            self.counters["planned_s"] += planned_s
            await asyncio.sleep(due - time.monotonic())
            planned_s, seen = self._prefill_s - seen, self._prefill_s
        self.counters["late_s"] += time.monotonic() - due


def _blocks(text: str) -> Iterator[int]:
    """A hash for each prefix of whole blocks."""
    hashes = (hash(text[i : i + BLOCK]) for i in range(0, len(text) - BLOCK + 1, BLOCK))
    return accumulate(hashes, lambda before, block: hash((before, block)))


class Handlers:
    """SGLang's own interface, and the part of OpenAI's that the peers use."""

    def __init__(self) -> None:
        self._engine = Engine()
        self._refuse_every = self._requests = self._chats = 0

    async def reset(self, request: web.Request) -> web.Response:
        """Empty cache and counters; refuse every n-th request from now on, if n > 0."""
        self._engine, self._requests, self._chats = Engine(), 0, 0
        self._refuse_every = int(request.query["refuse_every"])
        return web.json_response({})

    async def counters(self, _: web.Request) -> web.Response:
        """What the engine has done since the last reset."""
        return web.json_response(self._engine.counters)

    async def about(self, _: web.Request) -> web.Response:
        """The model and the server."""
        return web.json_response(ABOUT)

    async def generate(self, request: web.Request) -> web.Response:
        """SGLang's /generate."""
        body = await request.json()
        text, parameters = body["text"], body["sampling_params"]
        if parameters["max_new_tokens"] == 0:
            prompt, _ = await self._engine.generate(text, "", 0)
            return web.json_response({"text": "", "meta_info": {"prompt_tokens": prompt}})
        self._refuse_some()
        key = completion_of(text, parameters["sampling_seed"])
        prompt, cached = await self._engine.generate(text, *completion(*key))
        numbers = f', "prompt_tokens": {prompt}, "cached_tokens": {cached}}}}}'
        return web.Response(text=reply(*key) + numbers, content_type="application/json")

    async def chat(self, request: web.Request) -> web.Response:
        """OpenAI's chat completions. They carry no seed: the variants are used in turn."""
        body = await request.json()
        self._refuse_some()
        prompt, stop = chat_prompt(body["messages"]), "".join(body.get("stop") or "")
        seeds = range(self._chats, self._chats + (body.get("n") or 1))
        self._chats = seeds.stop
        made = [completion(*completion_of(prompt, seed), stop) for seed in seeds]
        (asked, _), *_ = await asyncio.gather(*(self._engine.generate(prompt, *m) for m in made))
        written = sum(tokens for _, tokens in made)
        usage = {"prompt_tokens": asked, "completion_tokens": written}
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
            for i, (text, _) in enumerate(made)
        ]
        usage |= {"total_tokens": asked + written}
        answer = {"id": "chat", "object": "chat.completion", "created": 0, "model": "simulated"}
        return web.json_response(answer | {"choices": choices, "usage": usage})

    def _refuse_some(self) -> None:
        self._requests += 1
        if self._refuse_every and self._requests % self._refuse_every == 0:
            raise web.HTTPBadRequest(text='{"error": {"message": "refused, as the bench asks"}}')


def _serve(listening: socket.socket) -> None:
    for variant, steps in product(range(VARIANTS), range(12)):
        reply(variant, steps)  # so that no request waits for it
    handlers, application = Handlers(), web.Application()
    application.add_routes(
        [
            web.post("/generate", handlers.generate),
            web.post("/v1/chat/completions", handlers.chat),
            web.get("/get_model_info", handlers.about),
            web.get("/get_server_info", handlers.about),
            web.get("/counters", handlers.counters),
            web.get("/reset", handlers.reset),
        ]
    )
    web.run_app(application, sock=listening, print=None, access_log=None)


@dataclass(frozen=True, slots=True)
class SimulatedServer:
    """A running simulated server."""

    url: str

    def reset(self, refuse_every: int = 0) -> None:
        """See Handlers."""
        self._get(f"/reset?refuse_every={refuse_every}")

    def counters(self) -> Counters:
        """See Counters."""
        return defaultdict(float, self._get("/counters"))

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def simulated_server() -> Iterator[SimulatedServer]:
    """A server in a process of its own, for the length of the block."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(listening,), daemon=True
        )
        process.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield SimulatedServer(url)
    finally:
        process.terminate()
        process.join()
