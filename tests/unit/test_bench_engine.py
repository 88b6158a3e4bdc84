"""The simulated engine batches and caches as it says, and its texts are what a search reads."""

from __future__ import annotations

import asyncio
import json

from marco_search.runtime.reply import read_completion
from ops.bench.engine import texts
from ops.bench.engine.core import milliseconds_per_node
from ops.bench.engine.simulator import STEP_S, Engine, PrefixCache


def test_a_prefix_is_cached_in_whole_blocks_up_to_the_first_difference() -> None:
    cache = PrefixCache()
    cache.add("a" * 100)
    assert cache.cached("a" * 40) == 32
    assert cache.cached("a" * 20 + "b" * 50) == 16
    assert cache.cached("b" * 50) == 0


def test_requests_that_come_together_share_the_steps() -> None:
    async def run() -> Engine:
        engine = Engine()
        loop = asyncio.create_task(engine.run())
        answers = await asyncio.gather(*(engine.generate("p" * 64, "c" * 9, 5) for _ in range(8)))
        again = await engine.generate("p" * 64 + "c" * 9, "d", 3)
        loop.cancel()
        assert answers == [(16, 0)] * 8
        assert again == (18, 16)  # of 73 characters 64 are in whole blocks
        return engine

    counters = asyncio.run(run()).counters
    assert (counters.requests, counters.generated, counters.peak_running) == (9, 43, 8)
    assert counters.steps == 8
    assert 8 * STEP_S < counters.busy_s < 10 * STEP_S


def test_completions_go_on_from_where_the_prefix_ends() -> None:
    prompt = "question<|im_start|>assistant\n<Thought>\n"
    _, fresh = texts.completion_of(prompt, 3)
    _, later = texts.completion_of(prompt + "one\ntwo\n", 3)
    _, ended = texts.completion_of(prompt + "one\n</Thought>", 3)
    assert (fresh - later, ended) == (2, 0)
    text, tokens, data = texts.completion(3, fresh)
    answer = json.loads(data + b"}}")
    read = read_completion(answer["text"], answer["meta_info"]).tokens
    assert len(read) == tokens
    assert "".join(t.text for t in read) == text


def test_the_time_per_node_is_measured_over_a_whole_search() -> None:
    milliseconds, nodes = milliseconds_per_node()
    assert milliseconds > 0
    assert nodes > 256
