"""Sends a request until it is answered, refused, out of time, or has failed too often.

Only for requests that are safe to repeat. A generate call is: it changes nothing on the
server, and its seed makes the second answer as good as the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from marco_search.runtime.sglang.calls import Call
from marco_search.runtime.sglang.failures import Failure, cut_short
from marco_search.runtime.sglang.pool import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often, and after how many seconds."""

    tries: int = 4  # not counting answers of "too many": those are waited out
    base_s: float = 0.25
    cap_s: float = 8.0

    def delay_s(self, failed: int, asked_s: float | None, random: Random) -> float:
        """Exponential backoff with full jitter; at least what the server asked for."""
        jitter = random.uniform(0, min(self.cap_s, self.base_s * 2.0 ** min(failed - 1, 30)))
        return jitter if asked_s is None else asked_s + jitter


# Shared by all processes' first moments: seeded by the system, unlike anything in a search.
_random = Random()


def generate(
    pool: Pool, prompt: str, body: dict[str, Any], call: Call, retries: Retries
) -> dict[str, Any] | Failure:
    """The answer to `body`, from the server of the search that `prompt` belongs to."""
    rid, failed, counted = body["rid"], 0, 0
    while True:
        # A server may still know the id of a try that broke off, and refuse it.
        attempt = body if not failed else body | {"rid": f"{rid}-{failed}"}
        found = pool.server_for(prompt).generate(attempt, call)
        if isinstance(found, dict) or not found.again:
            return found
        failed += 1
        counted += not found.busy
        if counted >= retries.tries:
            return found
        if not call.wait(retries.delay_s(failed, found.retry_after_s, _random)):
            return cut_short(deadline_passed=False) if call.left_s > 0 else found
