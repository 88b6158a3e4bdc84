"""The sequences in flight: admitted at any step, decoded together, retired at once.

Row i of the batch works in slot i. A row that leaves is replaced by the last one, so the rows
always fill slots 0..n-1 and a step needs no gathering. Used by the decoding thread alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from marco_search.errors import RuntimeFailure
from marco_search.runtime.embedded.decoder import Decoder, Part
from marco_search.runtime.embedded.radix import Match, RadixCache
from marco_search.runtime.embedded.requests import GenerationRequest, Ticket
from marco_search.runtime.embedded.row import Row
from marco_search.runtime.embedded.row_state import RowState
from marco_search.runtime.embedded.safetensors import Floats
from marco_search.runtime.embedded.sampling import AHEAD, Manner, log_softmax_parts, pick
from marco_search.runtime.embedded.slots import chunks_of
from marco_search.runtime.embedded.tokenizer import Tokenizer


class Batch:
    """All rows in flight, their sampling state as arrays, and the prefix cache."""

    def __init__(
        self,
        decoder: Decoder,
        cache: RadixCache,
        tokenizer: Tokenizer,
        eos_ids: Sequence[int],
        max_rows: int,
    ) -> None:
        """`cache.budget_bytes` is for the keys and values of the rows in flight too."""
        self.rows: list[Row] = []
        self.cache = cache
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._max_rows = max_rows
        self._limit_bytes = cache.budget_bytes
        self._state = RowState(max_rows)
        # Known until rows come or go: how to sample, and the first chunks all have in common.
        self._manner: Manner | None = None
        self._shared = 0

    def refusal(self, request: GenerationRequest) -> str | None:
        """Why there will never be room for a request; None: there will be."""
        needed = self._bytes_for(1, request.tokens)
        if needed <= self._limit_bytes:
            return None
        return (
            f"{request.tokens} tokens (prompt and max_new_tokens) need {-(-needed >> 20)} MiB for "
            f"keys and values, MARCO_EMBEDDED_CACHE_MIB allows {self._limit_bytes >> 20}"
        )

    def take(self, waiting: deque[Ticket]) -> list[Ticket]:
        """Those from the front of `waiting` that there is room for, also when all are as long
        as they may get. None overtakes another.
        """
        taken: list[Ticket] = []
        longest = max((row.request.tokens for row in self.rows), default=0)
        while waiting and len(self.rows) + len(taken) < self._max_rows:
            if waiting[0].cancelled:
                waiting.popleft()
                continue
            longest = max(longest, waiting[0].request.tokens)
            rows = len(self.rows) + len(taken) + 1
            if self._bytes_for(rows, longest) > self._share(rows):
                break
            taken.append(waiting.popleft())
        return taken

    def admit(self, tickets: Sequence[Ticket]) -> None:
        """Bring tickets in: take what the cache has, prefill the rest, sample first tokens."""
        first = len(self.rows)
        self._manner = None
        # Those that only fill the cache go last, so that nothing moves when they leave.
        tickets = sorted(tickets, key=lambda t: t.request.max_new_tokens == 0)
        new = range(first, first + len(tickets))
        longest = max(len(ticket.request.ids) for ticket in tickets)
        self._reserve(new.stop, max(longest, int(self._state.length[:first].max(initial=0))))
        matches = {i: self._seat(ticket) for i, ticket in zip(new, tickets, strict=True)}
        self._fill(matches)
        logits = self._prefill(matches)
        generating = [i for i in new if self.rows[i].generates]
        done = [i for i in new if not self.rows[i].generates]
        if generating:
            chosen = slice(first, first + len(generating))
            first_logits = np.stack([logits[i] for i in generating])
            done += self._sample(chosen, first_logits, self._state.manner(chosen))
        self._retire(done)

    def step(self) -> None:
        """Append every row's current token and choose the next one."""
        everything = slice(0, len(self.rows))
        positions = self._state.length[everything].copy()
        self._reserve(len(self.rows), int(positions.max()) + 1)
        if self._manner is None:
            self._manner = self._state.manner(everything)
            self._shared = _shared_chunks(self.rows)
        logits = self._decoder.step(self._state.current[everything], positions, self._shared)
        self._state.length[everything] += 1
        self._retire(self._sample(everything, logits, self._manner))

    def drop_cancelled(self) -> None:
        """Let go of rows whose callers have given up."""
        gone = [i for i, row in enumerate(self.rows) if row.ticket.cancelled]
        self._retire(gone)

    def abort(self, failure: RuntimeFailure) -> None:
        """Give every row the failure and let it go; what it computed stays cached."""
        for row in self.rows:
            row.ticket.settle(failure)
        self._retire(range(len(self.rows)))

    def fail_all(self, failure: RuntimeFailure) -> None:
        """Give every row the failure and start empty: slots and cache may be half-written."""
        rows, self.rows = self.rows, []
        self.cache.clear()
        self._rest()
        for row in rows:
            row.ticket.settle(failure)

    def _bytes_for(self, rows: int, tokens: int) -> int:
        return self._decoder.slots.size_bytes((rows, chunks_of(tokens)))

    def _share(self, rows: int) -> int:
        """What the slots may take. Several rows leave something for the prefix they share."""
        return self._limit_bytes if rows == 1 else self._limit_bytes * 3 // 4

    def _reserve(self, rows: int, tokens: int) -> None:
        """Make room in the slots, at the cost of cached prefixes if need be."""
        slots = self._decoder.slots
        shape = slots.shape_for(rows, tokens, self._share(rows))
        if shape != slots.shape:
            self.cache.limit(self._limit_bytes - slots.size_bytes(shape))
            slots.resize(shape)

    def _rest(self) -> None:
        """With nothing in flight, slots that take most of the memory leave it to the cache."""
        slots = self._decoder.slots
        if not self.rows and slots.size_bytes(slots.shape) > self._limit_bytes // 2:
            slots.resize((0, 0))
            self.cache.limit(self._limit_bytes)

    def _seat(self, ticket: Ticket) -> Match:
        request = ticket.request
        match = self.cache.match(request.ids)
        cached = match.length
        if match.logits is None:  # the last token has to be run again for its logits
            cached = min(cached, len(request.ids) - 1)
        if request.score_from is not None:
            cached = min(cached, request.score_from - 1)
        self._state.seat(len(self.rows), request)
        self.rows.append(Row(ticket, cached, self._eos_ids))
        return match

    def _fill(self, matches: Mapping[int, Match]) -> None:
        """Copy cached prefixes into slots; rows forked from one prefix share the work."""
        forks: dict[tuple[int, int], list[int]] = {}
        for i, match in matches.items():
            if cached := self.rows[i].cached:
                forks.setdefault((id(match.node), cached), []).append(i)
        for (_, cached), (leader, *others) in forks.items():
            for start, keys, values in self.cache.pieces(matches[leader], cached):
                self._decoder.slots.put(leader, start, keys, values)
            if others:
                self._decoder.slots.copy(leader, others, cached)

    def _prefill(self, matches: Mapping[int, Match]) -> dict[int, Floats]:
        """Run what was not cached; the logits after each prompt, by row."""
        logits = {i: m.logits for i, m in matches.items() if m.logits is not None}
        parts, wanted, owners = [], [], []
        for i in matches:
            row = self.rows[i]
            rest = len(row.prompt) - row.cached
            if rest:
                parts.append(Part(i, row.cached, row.prompt[row.cached :]))
                scored = row.request.score_from
                wanted.append(
                    [rest - 1] if scored is None else range(scored - 1 - row.cached, rest)
                )
                owners.append(i)
        if parts:
            for i, after in zip(owners, self._decoder.prefill(parts, wanted), strict=True):
                logits[i] = after[-1]
                self.rows[i].scores = _scores(self.rows[i], after)
                if not self.rows[i].generates:  # a fork is announced: its first tokens are free
                    self._keep(i, after[-1])
        return logits

    def _sample(self, where: slice, logits: Floats, manner: Manner) -> list[int]:
        """Choose a token for each of these rows; the rows that it ends."""
        picks = pick(logits, manner, self._state.next_numbers(where))
        self._state.current[where] = picks.tokens
        bytes_of, done = self._tokenizer.bytes_of, []
        steps = zip(
            range(where.start, where.stop),
            picks.tokens.tolist(),
            picks.logprobs.tolist(),
            picks.top_ids.tolist(),
            picks.top_logprobs.tolist(),
            strict=True,
        )
        for index, token, logprob, top_ids, top_logprobs in steps:
            row = self.rows[index]
            row.logprobs.append(logprob)
            row.top_ids.append(top_ids)
            row.top_logprobs.append(top_logprobs)
            if row.take(token, bytes_of(token)):
                done.append(index)
            elif len(row.tokens) % AHEAD == 0:
                self._state.renew_numbers(index, row.request.seed)
        return done

    def _retire(self, done: Sequence[int]) -> None:
        for index in sorted(done, reverse=True):
            row = self.rows[index]
            if row.generates:
                self._keep(index, None)
            self._close_gap(index)
            row.ticket.settle(row.completion())
        self._rest()

    def _keep(self, index: int, logits: Floats | None) -> None:
        """Put a row's tokens into the cache."""
        length = int(self._state.length[index])
        self.cache.insert(
            self.rows[index].ids(length),
            lambda start, end: self._decoder.slots.get(index, start, end),
            logits,
        )

    def _close_gap(self, index: int) -> None:
        self._manner = None
        last = self.rows.pop()
        end = len(self.rows)
        if index < end:
            self.rows[index] = last
            self._decoder.slots.copy(end, [index], int(self._state.length[end]))
            self._state.move(end, index)


def _shared_chunks(rows: Sequence[Row]) -> int:
    """How many of their first whole chunks are the same in all prompts."""
    fewest = min(len(row.chunks) for row in rows)
    for i in range(fewest):
        if len({row.chunks[i] for row in rows}) > 1:
            return i
    return fewest


def _scores(row: Row, logits: Floats) -> list[float]:
    """Log-probs of the prompt's tokens from `score_from` on; logits[i] come before the i-th."""
    start = row.request.score_from
    if start is None:
        return []
    shifted, _, log_sum = log_softmax_parts(logits)
    ids = row.prompt[start:].astype(np.int64)
    found: list[float] = (shifted[np.arange(len(ids)), ids] - log_sum[: len(ids)]).tolist()
    return found
