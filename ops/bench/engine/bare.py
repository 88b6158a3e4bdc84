"""The least that a client can do: the same requests, sent with aiohttp, answers parsed."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp

from marco_search.search.branches import END_OF_OUTPUT, TOP_K


async def replay(url: str, searches: list[list[list[tuple[str, int, int]]]]) -> float:
    """All searches at once, each round when the one before is answered. Seconds it took.

    A search can't know a request before the answers that it follows from; so the bare client
    sends them in the same order, and what is compared is the cost of everything else. It
    commits each search's prompt before it forks it, as ours do.
    """
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def search(rounds: list[list[tuple[str, int, int]]]) -> None:
            await _commit(session, url, rounds)
            for requests in rounds:
                await asyncio.gather(*(_post(session, url, *request) for request in requests))

        began = time.monotonic()
        await asyncio.gather(*(search(rounds) for rounds in searches))
        return time.monotonic() - began


async def replay_without_order(
    url: str, searches: list[list[list[tuple[str, int, int]]]], at_once: int
) -> float:
    """The same requests as fast as they go, `at_once` in flight all the time. Seconds.

    No search could do this: it is what the engine gives when nothing waits for anything. The
    requests go out in the order of rounds, so that a prefix is cached before it is used.
    """
    longest = max(len(rounds) for rounds in searches)
    queue = [
        request
        for i in range(longest)
        for rounds in searches
        if i < len(rounds)
        for request in rounds[i]
    ]
    waiting = iter(queue)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def work() -> None:
            for request in waiting:
                await _post(session, url, *request)

        began = time.monotonic()
        await asyncio.gather(*(_commit(session, url, rounds) for rounds in searches))
        await asyncio.gather(*(work() for _ in range(at_once)))
        return time.monotonic() - began


async def _commit(
    session: aiohttp.ClientSession, url: str, rounds: list[list[tuple[str, int, int]]]
) -> None:
    body = {"text": rounds[0][0][0], "sampling_params": {"max_new_tokens": 0}}
    async with session.post(f"{url}/generate", json=body) as answer:
        await answer.read()


async def _post(session: aiohttp.ClientSession, url: str, text: str, seed: int, room: int) -> Any:
    body = {
        "text": text,
        "sampling_params": {
            "max_new_tokens": room,
            "temperature": 1.0,
            "stop": [END_OF_OUTPUT],
            "sampling_seed": seed,
        },
        "return_logprob": True,
        "top_logprobs_num": TOP_K,
        "return_text_in_logprobs": True,
    }
    async with session.post(f"{url}/generate", json=body) as answer:
        return json.loads(await answer.read())
