"""What the engine is asked for and what it answers; and the ticket that joins the two."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field

from marco_search.errors import RuntimeFailure
from marco_search.runtime.embedded.tokenizer import TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Continue `ids`. With `max_new_tokens` 0 the prefix is only put in the cache."""

    ids: TokenIds
    max_new_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0  # 0 <= seed < 2**64
    stops: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    score_from: int | None = None  # also give the log-probs of ids[score_from:], >= 1

    @property
    def tokens(self) -> int:
        """How many there may be at the end: prompt and generated."""
        return len(self.ids) + self.max_new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The engine's answer to one request. Lists have one entry a generated token."""

    tokens: list[int]  # those of the stop too
    logprobs: list[float]
    top_ids: list[list[int]]  # the best candidates, best first
    top_logprobs: list[list[float]]
    matched: str | int | None  # the stop string or token id that ended it; None: out of tokens
    prompt_tokens: int
    cached_tokens: int  # of those, taken from the prefix cache
    scores: list[float]  # log-probs of the prompt's tokens from score_from on


Outcome = Completion | RuntimeFailure


@dataclass(eq=False, slots=True)
class Ticket:
    """One request on its way. The caller waits on it; the decoding thread settles it once."""

    request: GenerationRequest
    stream: queue.SimpleQueue[int | None] | None = None  # token ids as they come, then None
    cancelled: bool = False
    _outcome: Outcome | None = None
    _settled: threading.Event = field(default_factory=threading.Event)

    def settle(self, outcome: Outcome) -> None:
        """Give the answer, or the failure as a value, and wake the caller."""
        if not self._settled.is_set():
            self._outcome = outcome
            self._settled.set()
            if self.stream is not None:
                self.stream.put(None)

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """The outcome. When `timeout_s` passes first, the request is cancelled and fails."""
        if not self._settled.wait(timeout_s):
            self.cancelled = True
            return RuntimeFailure(f"no answer from the embedded engine in {timeout_s:g} s")
        assert self._outcome is not None, "settled tickets have an outcome"
        return self._outcome
