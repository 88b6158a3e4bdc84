"""How busy searches keep an engine: `make bench-runtime`. See docs/performance.md."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import aiohttp

from marco_search import engine
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.search.branches import MARCO_O1, TOP_K, Branch, Expansion, Finish
from marco_search.search.tree import Rollout
from marco_search.settings import Settings
from marco_search.store.queue import jobs
from ops.bench import peers
from ops.bench.harness import WORKER, report, scratch_services
from ops.bench.simulator import Counters, InstantRuntime, SimulatedServer, job, simulated_server
from worker.runner import Runner

ROLLOUTS = 256  # of a search whose time per node is measured
GOALS = {
    "throughput_ratio": ">= 0.95",
    "peak_in_flight": "32",
    "search_ms_per_node": "< 0.1",
    "persisted_ms_per_node": "< 1",
    "discarded_tokens": "0",
    "simulated_cached_prompt_share": ">= 0.95",
}
Request = tuple[str, int, int]
"""Prefix, seed, most new tokens."""


def measure(searches: int, rollouts: int, *, others: bool) -> dict[str, Any]:
    """All figures, by their keys."""
    found: dict[str, Any] = {"searches": searches, "rollouts": rollouts}
    found["load_before"] = os.getloadavg()[0]
    # First, while no other process takes the processor's time.
    found["search_ms_per_node"] = min(milliseconds_per_node(seed) for seed in range(5))
    found["persisted_ms_per_node"] = persisted_ms_per_node()
    with simulated_server() as server:
        step = many(server, searches, rollouts, "step")
        found |= throughput(server, step)
        for key, wide in {"peak_in_flight": 32, "peak_in_flight_default": None}.items():
            found[key] = many(server, 1, 32, "step", wide=wide).counters["peak_running"]
        if others:
            best = many(server, searches, rollouts, "best-of-n")
            found |= _beside_peers(server, "step", step, rollouts)
            found |= _beside_peers(server, "best-of-n", best, rollouts)
            found |= peers.measure(server, searches, rollouts)
    return found


@dataclass(frozen=True, slots=True)
class Searched:
    """One search: its requests round by round, and what came of it."""

    rounds: list[list[Request]]
    rollouts: Sequence[Rollout]
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """Searches at once, from the first one's start to the last one's end."""

    searches: list[Searched]
    seconds: float
    counters: Counters

    @property
    def rollouts(self) -> list[Rollout]:
        """Of all searches."""
        return [rollout for searched in self.searches for rollout in searched.rollouts]


class Recorder:
    """A runtime that also keeps the requests of every round."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.rounds: list[list[Request]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """Passed on."""
        asked = [(e.prefix, r.seed, r.max_new_tokens) for e in expansions for r in e.branches]
        self.rounds.append(asked)
        return self._runtime.branch(expansions)


def open_engine(address: str, **more: Any) -> Runtime:
    """The engine at an address, or "embedded"."""
    values = {"MARCO_RUNTIME": address, "MARCO_RUNTIME_TIMEOUT_S": 600}
    return open_runtime(Settings.model_validate(values | more))


_opened = cache(open_engine)  # once in each process of `many`


def search(
    runtime: Runtime, strategy: str, rollouts: int, seed: int = 0, wide: int | None = None
) -> Searched:
    """One search on a runtime, with as many branches at once as `wide`."""
    recorder, work = Recorder(runtime), job(seed, strategy, rollouts)
    plan = engine.make_plan(work, runtime)
    if wide:
        plan = replace(plan, config=replace(plan.config, parallel=wide, root_width=2 * wide))
    began = time.process_time()
    done = engine.run_search(work, plan, recorder, engine.Journal())
    cpu_s = time.process_time() - began
    return Searched(recorder.rounds, tuple(done.search.tree.rollouts), cpu_s)


def many(
    server: SimulatedServer,
    count: int,
    rollouts: int,
    strategy: str,
    *,
    wide: int | None = None,
    refuse: int = 0,
) -> Run:
    """`count` searches at once, one a process as under the worker, on an empty cache."""
    server.reset(refuse)
    work = partial(_search_at, server.url, strategy, rollouts, wide)
    found, seconds = peers.at_once(work, range(count), partial(_opened, server.url))
    return Run(found, seconds, server.counters())


def _search_at(url: str, strategy: str, rollouts: int, wide: int | None, seed: int) -> Searched:
    return search(_opened(url), strategy, rollouts, seed, wide)


def failed(rollouts: Sequence[Rollout]) -> int:
    """Rollouts that the runtime gave no text for."""
    return sum(rollout.finish is Finish.FAILED for rollout in rollouts)


def cached_share(rollouts: Sequence[Rollout]) -> float:
    """Share of the prompt tokens that came from the prefix cache."""
    return sum(r.cached_tokens for r in rollouts) / sum(r.prompt_tokens for r in rollouts)


def _beside_peers(server: SimulatedServer, strategy: str, run: Run, budget: int) -> dict[str, Any]:
    """The figures that peers have, too."""
    found = peers.speed(run.counters, run.seconds, sum(s.cpu_s for s in run.searches))
    wide = many(server, 1, budget, strategy, wide=budget if strategy == "step" else None)
    refused = many(server, 1, budget, strategy, refuse=peers.REFUSE_EVERY)
    found |= {
        "lost_searches": 0,
        "peak_in_flight": wide.counters["peak_running"],
        "refused_kept": budget - failed(refused.rollouts),
        "refused_error": "",
    }
    return {f"our_{strategy.replace('-', '_')}_{key}": value for key, value in found.items()}


async def replay(url: str, searches: Sequence[Searched], at_once: int = 0) -> float:
    """Seconds that a client which does nothing else takes for the same requests.

    Each round is sent when the one before is answered, as in a search. With `at_once`, so many
    requests are in flight all the time, in the order of rounds: what the engine gives when
    nothing waits for anything.
    """
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def send(text: str, seed: int, room: int) -> None:
            sampling = {
                "max_new_tokens": room,
                "temperature": 1.0,
                "stop": MARCO_O1.stops,
            }
            body: dict[str, Any] = {"return_logprob": True, "top_logprobs_num": TOP_K}
            body |= {"text": text, "sampling_params": sampling | {"sampling_seed": seed}}
            async with session.post(f"{url}/generate", json=body) as answer:
                json.loads(await answer.read())

        async def replayed(rounds: list[list[Request]]) -> None:
            await send(rounds[0][0][0], 0, 0)  # commits the prompt, as ours do
            for requests in [] if at_once else rounds:
                await asyncio.gather(*(send(*request) for request in requests))

        async def work() -> None:
            for request in waiting:
                await send(*request)

        rounds = [searched.rounds for searched in searches]
        in_order = itertools.zip_longest(*rounds, fillvalue=())
        waiting = (request for group in in_order for requests in group for request in requests)
        began = time.monotonic()
        await asyncio.gather(*map(replayed, rounds))
        await asyncio.gather(*(work() for _ in range(at_once)))
        return time.monotonic() - began


def throughput(server: SimulatedServer, run: Run) -> dict[str, Any]:
    """The same requests by a client that does nothing else, in our order and without one."""
    ours = run.counters
    server.reset()
    bare_s = asyncio.run(replay(server.url, run.searches))
    bare = server.counters()
    server.reset()
    full_s = asyncio.run(replay(server.url, run.searches, int(ours["peak_running"])))
    tokens = ours["generated"]
    if tokens != bare["generated"]:
        raise SystemExit(f"ours generated {tokens} tokens, the bare client {bare['generated']}")
    return {
        "throughput_ratio": bare_s / run.seconds,
        "throughput_ratio_no_order": full_s / run.seconds,
        "tokens_per_s": tokens / run.seconds,
        "bare_tokens_per_s": tokens / bare_s,
        "no_order_tokens_per_s": tokens / full_s,
        "peak_running": ours["peak_running"],
        "requests": ours["requests"] - ours["commits"],
        "commits": ours["commits"],
        "failed": failed(run.rollouts),
        "discarded_tokens": tokens - sum(r.generated_tokens for r in run.rollouts),
        "simulated_cached_prompt_share": cached_share(run.rollouts),
        "simulator_late_share": ours["late_s"] / ours["planned_s"],
        "bare_simulator_late_share": bare["late_s"] / bare["planned_s"],
    }


def milliseconds_per_node(seed: int) -> float:
    """Processor time of a search without that of its runtime; nothing is kept."""
    runtime, work = InstantRuntime(time.thread_time), job(seed, "step", ROLLOUTS)
    plan = engine.make_plan(work, runtime)
    began = time.thread_time()
    done = engine.run_search(work, plan, runtime, engine.Journal())
    spent = time.thread_time() - began - runtime.seconds
    return 1000 * spent / (len(done.search.tree.nodes) - 1)


def persisted_ms_per_node() -> float:
    """Time on the clock, every round committed to Postgres by the worker."""
    found = []
    with scratch_services() as services, services.database() as database:
        settings = Settings.model_validate({"DATABASE_URL": services.urls.database_url})
        runtime = InstantRuntime()
        runner = Runner(settings, database, lambda: runtime, WORKER)
        for seed in range(3):
            before_s = runtime.seconds
            with database.transaction() as conn:
                jobs.insert(conn, [job(seed, "step", ROLLOUTS)], tenant="bench")
            runner.run_next()
            with database.transaction() as conn:
                rows = conn.execute("SELECT seconds, nodes FROM jobs ORDER BY id DESC LIMIT 1")
                ((searched_s, nodes),) = rows
            found.append(1000 * (float(searched_s) - runtime.seconds + before_s) / int(nodes))
    return min(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench-runtime")
    parser.add_argument("--searches", type=int, default=64, help="at once")
    parser.add_argument("--rollouts", type=int, default=32, help="of each")
    parser.add_argument("--no-peers", action="store_true", help="leave the other projects out")
    asked = parser.parse_args()
    others = not asked.no_peers
    figures = measure(asked.searches, asked.rollouts, others=others)
    report("runtime", figures, GOALS)
    if others:
        print(peers.table(figures))
