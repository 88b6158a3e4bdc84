"""The sequences in flight: admitted at any step, decoded together, retired at once.

Row i of the batch works in slot i. A row that leaves is replaced by the last one, so the rows
always fill slots 0..n-1 and a step needs no gathering. Used by the decoding thread alone.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

import numpy as np

from marco_search.errors import RuntimeFailure, RuntimeUnavailable
from marco_search.runtime.embedded.cache import Match, RadixCache, chunks_of
from marco_search.runtime.embedded.decoder import Decoder, Part
from marco_search.runtime.embedded.linear import Floats
from marco_search.runtime.embedded.sampling import PICKED_AT_ONCE, Picks, pick, uniforms
from marco_search.runtime.embedded.tokenizer import TokenIds, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Continue `ids`. With `max_new_tokens` 0 the prefix is only put in the cache.

    temperature: 0 is greedy; seed: 0 <= seed < 2**64; stops, stop_ids: texts and tokens that
    end the sequence.
    """

    ids: TokenIds
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stops: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()

    @property
    def total_tokens(self) -> int:
        """How many there may be at the end: prompt and generated."""
        return len(self.ids) + self.max_new_tokens


class Row(Future[None]):
    """A request and what was generated for it so far; done when that is all, or it failed.

    Lists have one entry a generated token: tokens, with those of the stop, their logprobs, and
    top_ids and top_logprobs, the best candidates, best first. `matched` is the stop text or
    token that ended it, None if it is out of tokens; `cached_tokens` came from the prefix cache.
    """

    def __init__(self, request: GenerationRequest) -> None:
        super().__init__()
        self.request = request
        self.prompt_tokens = len(request.ids)
        self.cached_tokens = 0
        self.matched: str | int | None = None
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_ids: list[list[int]] = []
        self.top_logprobs: list[list[float]] = []
        self.length = len(request.ids)  # tokens whose keys and values are in the slot
        self.uniforms: list[float] = uniforms(request.seed, request.max_new_tokens).tolist()
        self._stops = [(s, s.encode()) for s in request.stops if s]
        self._tail_limit = max((len(b) for _, b in self._stops), default=1) - 1
        self._tail = b""

    @property
    def generates(self) -> bool:
        """False for a prefix that is only to be cached."""
        return self.request.max_new_tokens > 0

    def append(self, token: int, text: bytes) -> bool:
        """Append a token, whose bytes are `text`. True when this ends the row."""
        self.tokens.append(token)
        if token in self.request.stop_ids:
            self.matched = token
            return True
        if self._stops:
            # The part before `text` was searched already; a stop may begin in its last bytes.
            recent = self._tail + text
            for stop, pattern in self._stops:
                if pattern in recent:
                    self.matched = stop
                    return True
            self._tail = recent[-self._tail_limit :] if self._tail_limit else b""
        return len(self.tokens) >= self.request.max_new_tokens

    def ids(self) -> TokenIds:
        """The tokens in the slot, prompt and generated."""
        generated = self.tokens[: self.length - len(self.request.ids)]
        return np.concatenate([self.request.ids, np.array(generated, np.int32)])

    def finish(self) -> None:
        """All is generated. Without effect if the row is done or cancelled."""
        with contextlib.suppress(InvalidStateError):
            self.set_result(None)

    def fail(self, message: str, kind: type[RuntimeFailure] = RuntimeUnavailable) -> None:
        """Give the caller a failure. Without effect if the row is done or cancelled."""
        with contextlib.suppress(InvalidStateError):
            self.set_exception(kind(message))


class Batch:
    """All rows in flight and the prefix cache."""

    def __init__(
        self, decoder: Decoder, cache: RadixCache, tokenizer: Tokenizer, max_rows: int
    ) -> None:
        """`cache.budget_bytes` is for the keys and values of the rows in flight too."""
        self.rows: list[Row] = []
        self.cache = cache
        self._decoder = decoder
        self._slots = decoder.slots
        self._tokenizer = tokenizer
        self._max_rows = max_rows
        self._limit_bytes = cache.budget_bytes

    def refusal(self, request: GenerationRequest) -> str | None:
        """Why there will never be room for a request; None: there will be."""
        needed = self._bytes_for(1, request.total_tokens)
        if needed <= self._limit_bytes:
            return None
        return (
            f"{request.total_tokens} tokens (prompt and max_new_tokens) need "
            f"{-(-needed >> 20)} MiB for keys and values, MARCO_EMBEDDED_CACHE_MIB allows "
            f"{self._limit_bytes >> 20}"
        )

    def take(self, waiting: deque[Row]) -> list[Row]:
        """Those from the front of `waiting` that fit, even when all grow as long as they may.

        None overtakes another.
        """
        taken: list[Row] = []
        longest = max((row.request.total_tokens for row in self.rows), default=0)
        while waiting and len(self.rows) + len(taken) < self._max_rows:
            if waiting[0].done():
                waiting.popleft()
                continue
            longest = max(longest, waiting[0].request.total_tokens)
            count = len(self.rows) + len(taken) + 1
            if self._bytes_for(count, longest) > self._share(count):
                break
            taken.append(waiting.popleft())
        return taken

    def admit(self, arrived: Sequence[Row]) -> None:
        """Bring rows in: take what the cache has, prefill the rest, sample first tokens."""
        first = len(self.rows)
        # Those that only fill the cache go last, so that nothing moves when they leave.
        arrived = sorted(arrived, key=lambda row: not row.generates)
        self._reserve(first + len(arrived), max(row.length for row in (*self.rows, *arrived)))
        self.rows += arrived
        matches = {i: self._match(row) for i, row in enumerate(arrived, first)}
        self._fill(matches)
        logits = self._prefill(matches)
        generating = [i for i in matches if self.rows[i].generates]
        done = [i for i in matches if not self.rows[i].generates]
        if generating:
            done += self._sample(generating, np.stack([logits[i] for i in generating]))
        self._retire(done)

    def step(self) -> None:
        """Append every row's last token to its slot and choose the next one."""
        positions = np.array([row.length for row in self.rows])
        self._reserve(len(self.rows), int(positions.max()) + 1)
        current = np.array([row.tokens[-1] for row in self.rows])
        logits = self._decoder.step(current, positions)
        for row in self.rows:
            row.length += 1
        self._retire(self._sample(range(len(self.rows)), logits))

    def drop_done(self) -> None:
        """Remove rows that were cancelled or aborted; what they computed stays cached."""
        self._retire([i for i, row in enumerate(self.rows) if row.done()])

    def fail_all(self, message: str) -> None:
        """Fail every row and start empty: slots and cache may be half-written."""
        rows, self.rows = self.rows, []
        self.cache.clear()
        self._release_slots()
        for row in rows:
            row.fail(message)

    def _bytes_for(self, rows: int, tokens: int) -> int:
        return self._slots.size_bytes((rows, chunks_of(tokens)))

    def _share(self, rows: int) -> int:
        """What the slots may take. Several rows leave something for the prefix they share."""
        return self._limit_bytes if rows == 1 else self._limit_bytes * 3 // 4

    def _reserve(self, rows: int, tokens: int) -> None:
        """Make room in the slots, at the cost of cached prefixes if need be."""
        shape = self._slots.shape_for(rows, tokens, self._share(rows))
        if shape != self._slots.shape:
            self.cache.limit(self._limit_bytes - self._slots.size_bytes(shape))
            self._slots.resize(shape)

    def _release_slots(self) -> None:
        """With nothing in flight, slots that take most of the memory leave it to the cache."""
        if not self.rows and self._slots.size_bytes(self._slots.shape) > self._limit_bytes // 2:
            self._slots.resize((0, 0))
            self.cache.limit(self._limit_bytes)

    def _match(self, row: Row) -> Match:
        match = self.cache.match(row.request.ids)
        row.cached_tokens = match.length
        if match.logits is None:  # the last token has to be run again for its logits
            row.cached_tokens = min(match.length, len(row.request.ids) - 1)
        return match

    def _fill(self, matches: Mapping[int, Match]) -> None:
        """Copy cached prefixes into slots; rows forked from one prefix share the work."""
        forks: dict[tuple[int, int], list[int]] = {}
        for i, match in matches.items():
            if cached := self.rows[i].cached_tokens:
                forks.setdefault((id(match.path[-1][1]), cached), []).append(i)
        for (_, cached), (leader, *others) in forks.items():
            for start, kv in matches[leader].pieces(cached):
                self._slots.put(leader, start, kv)
            if others:
                self._slots.copy(leader, others, cached)

    def _prefill(self, matches: Mapping[int, Match]) -> dict[int, Floats]:
        """Run what was not cached; the logits after each prompt, by row."""
        logits = {i: m.logits for i, m in matches.items() if m.logits is not None}
        parts = []
        for i in matches:
            if i not in logits:
                cached = self.rows[i].cached_tokens
                parts.append(Part(i, cached, self.rows[i].request.ids[cached:]))
        if parts:
            logits |= {
                p.slot: row for p, row in zip(parts, self._decoder.prefill(parts), strict=True)
            }
        for part in parts:
            # A fork is announced: with the logits kept, its children's first tokens are free.
            if not self.rows[part.slot].generates:
                self._keep(part.slot, logits[part.slot])
        return logits

    def _sample(self, indices: Sequence[int], logits: Floats) -> list[int]:
        """Choose a token for each of these rows; the rows that it ends."""
        rows = [self.rows[i] for i in indices]
        temperatures = np.array([row.request.temperature for row in rows], np.float32)
        top_ps = np.array([row.request.top_p for row in rows], np.float32)
        uniforms = np.array([row.uniforms[len(row.tokens)] for row in rows])
        at_once = max(1, PICKED_AT_ONCE // logits.shape[1])
        picked: dict[int, Picks] = {}

        def work(part: slice) -> None:
            for start in range(part.start, part.stop, at_once):
                some = slice(start, min(start + at_once, part.stop))
                picked[start] = pick(logits[some], temperatures[some], top_ps[some], uniforms[some])

        self._decoder.team.share(work, len(rows))
        chosen = [entry for start in sorted(picked) for entry in picked[start].by_row()]
        done = []
        for index, row, (token, logprob, top_ids, top_logprobs) in zip(
            indices, rows, chosen, strict=True
        ):
            row.logprobs.append(logprob)
            row.top_ids.append(top_ids)
            row.top_logprobs.append(top_logprobs)
            if row.append(token, self._tokenizer.bytes_of(token)):
                done.append(index)
        return done

    def _retire(self, done: Sequence[int]) -> None:
        for index in sorted(done, reverse=True):
            row = self.rows[index]
            if row.generates:
                self._keep(index, None)
            self._close_gap(index)
            row.finish()
        self._release_slots()

    def _keep(self, index: int, logits: Floats | None) -> None:
        """Put a row's tokens into the cache."""
        row = self.rows[index]
        self.cache.insert(row.ids(), lambda start, end: self._slots.get(index, start, end), logits)

    def _close_gap(self, index: int) -> None:
        last = self.rows.pop()
        if index < len(self.rows):
            self.rows[index] = last
            self._slots.copy(len(self.rows), [index], last.length)
