"""One sequence in the batch: what it has generated and when it is finished."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marco_search.runtime.embedded.requests import Completion, Ticket
from marco_search.runtime.embedded.slots import CHUNK
from marco_search.runtime.embedded.tokenizer import TokenIds


class Row:
    """A ticket while it is decoded."""

    __slots__ = (
        "_tail_limit",
        "_text",
        "cached",
        "chunks",
        "ends",
        "logprobs",
        "matched",
        "prompt",
        "request",
        "scores",
        "stops",
        "ticket",
        "tokens",
        "top_ids",
        "top_logprobs",
    )

    def __init__(self, ticket: Ticket, cached: int, eos_ids: Sequence[int]) -> None:
        self.ticket = ticket
        self.request = ticket.request
        self.prompt: TokenIds = ticket.request.ids
        self.cached = cached
        self.matched: str | int | None = None
        self.scores: list[float] = []
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_ids: list[list[int]] = []
        self.top_logprobs: list[list[float]] = []
        # The prompt's whole chunks: rows whose first chunks are equal share these.
        whole = len(self.prompt) // CHUNK
        self.chunks = [self.prompt[i * CHUNK : (i + 1) * CHUNK].tobytes() for i in range(whole)]
        eos = () if ticket.request.ignore_eos else eos_ids
        self.ends = frozenset((*eos, *ticket.request.stop_ids))
        self.stops = [(s, s.encode()) for s in ticket.request.stops if s]
        self._tail_limit = max((len(b) for _, b in self.stops), default=1) - 1
        self._text = b""

    @property
    def generates(self) -> bool:
        """False for a prefix that is only to be cached or scored."""
        return self.request.max_new_tokens > 0

    def take(self, token: int, text: bytes) -> bool:
        """Append a token, whose bytes are `text`. True when this ends the row."""
        self.tokens.append(token)
        if self.ticket.stream is not None:
            self.ticket.stream.put(token)
        if token in self.ends:
            self.matched = token
            return True
        if self.stops:
            # The part before `text` was searched already; a stop may begin in its last bytes.
            recent = self._text + text
            for stop, pattern in self.stops:
                if pattern in recent:
                    self.matched = stop
                    return True
            self._text = recent[-self._tail_limit :] if self._tail_limit else b""
        return len(self.tokens) >= self.request.max_new_tokens

    def ids(self, length: int) -> TokenIds:
        """The first `length` tokens, prompt and generated."""
        generated = np.array(self.tokens[: max(0, length - len(self.prompt))], np.int32)
        return np.concatenate([self.prompt[:length], generated])

    def completion(self) -> Completion:
        """The answer as it stands."""
        return Completion(
            tokens=self.tokens,
            logprobs=self.logprobs,
            top_ids=self.top_ids,
            top_logprobs=self.top_logprobs,
            matched=self.matched,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            scores=self.scores,
        )
