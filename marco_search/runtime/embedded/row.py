"""One sequence in the batch: what it has generated and when it is finished."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marco_search.runtime.embedded.radix import Match
from marco_search.runtime.embedded.requests import Completion, Ticket, TokenScore
from marco_search.runtime.embedded.sampling import Picks
from marco_search.runtime.embedded.tokenizer import TokenIds


class Row:
    """A ticket while it is decoded."""

    __slots__ = (
        "_picks",
        "_tail_limit",
        "_text",
        "_tokens",
        "cached",
        "ends",
        "match",
        "matched",
        "prompt",
        "request",
        "scores",
        "stops",
        "ticket",
    )

    def __init__(self, ticket: Ticket, match: Match, cached: int, eos_ids: Sequence[int]) -> None:
        self.ticket = ticket
        self.request = ticket.request
        self.prompt: TokenIds = ticket.request.ids
        self.match = match
        self.cached = cached
        self.matched: str | int | None = None
        self.scores: tuple[TokenScore, ...] = ()
        eos = () if ticket.request.ignore_eos else eos_ids
        self.ends = frozenset((*eos, *ticket.request.stop_ids))
        self.stops = [(s, s.encode()) for s in ticket.request.stops if s]
        self._tail_limit = max((len(b) for _, b in self.stops), default=1) - 1
        self._text = b""
        self._tokens: list[int] = []
        self._picks: list[tuple[Picks, int]] = []

    @property
    def generates(self) -> bool:
        """False for a prefix that is only to be cached or scored."""
        return self.request.max_new_tokens > 0

    def take(self, token: int, text: bytes, picks: Picks, index: int) -> bool:
        """Append a token, with its row in the step's picks. True when this ends the row."""
        self._tokens.append(token)
        self._picks.append((picks, index))
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
        return len(self._tokens) >= self.request.max_new_tokens

    def ids(self, length: int) -> TokenIds:
        """The first `length` tokens, prompt and generated."""
        generated = np.array(self._tokens[: max(0, length - len(self.prompt))], np.int32)
        return np.concatenate([self.prompt[:length], generated])

    def completion(self) -> Completion:
        """The answer as it stands."""
        tokens = []
        for token, (picks, i) in zip(self._tokens, self._picks, strict=True):
            pairs = zip(picks.top_ids[i].tolist(), picks.top_logprobs[i].tolist(), strict=True)
            tokens.append(TokenScore(token, float(picks.logprobs[i]), tuple(pairs)))
        return Completion(
            tokens=tuple(tokens),
            matched=self.matched,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            scores=self.scores,
        )
