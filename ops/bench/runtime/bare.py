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
    sends them in the same order, and what is compared is the cost of everything else.
    """
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def search(rounds: list[list[tuple[str, int, int]]]) -> None:
            for requests in rounds:
                await asyncio.gather(*(_post(session, url, *request) for request in requests))

        began = time.monotonic()
        await asyncio.gather(*(search(rounds) for rounds in searches))
        return time.monotonic() - began


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
