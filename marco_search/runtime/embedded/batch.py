"""The sequences in flight: admitted at any step, decoded together, retired at once.

Row i of the batch works in slot i. A row that leaves is replaced by the last one, so the rows
always fill slots 0..n-1 and a step needs no gathering. Used by the decoding thread alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marco_search.errors import RuntimeFailure
from marco_search.runtime.embedded.decoder import Decoder, Part
from marco_search.runtime.embedded.radix import RadixCache
from marco_search.runtime.embedded.requests import Ticket
from marco_search.runtime.embedded.row import Row
from marco_search.runtime.embedded.row_state import RowState
from marco_search.runtime.embedded.safetensors import Floats
from marco_search.runtime.embedded.sampling import AHEAD, Manner, log_softmax_parts, pick
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
        self.rows: list[Row] = []
        self.cache = cache
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._state = RowState(max_rows)
        # Known until rows come or go: how to sample, and the first chunks all have in common.
        self._manner: Manner | None = None
        self._shared = 0

    def admit(self, tickets: Sequence[Ticket]) -> None:
        """Bring tickets in: take what the cache has, prefill the rest, sample first tokens."""
        first = len(self.rows)
        self._manner = None
        # Those that only fill the cache go last, so that nothing moves when they leave.
        for ticket in sorted(tickets, key=lambda t: t.request.max_new_tokens == 0):
            self.rows.append(self._seat(ticket))
        new = range(first, len(self.rows))
        self._decoder.slots.reserve(len(self.rows), max(len(self.rows[i].prompt) for i in new))
        self._fill(new)
        logits = self._prefill(new)
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
        self._decoder.slots.reserve(len(self.rows), int(positions.max()) + 1)
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
        for row in rows:
            row.ticket.settle(failure)

    def _seat(self, ticket: Ticket) -> Row:
        request = ticket.request
        match = self.cache.match(request.ids)
        cached = match.length
        if match.logits is None:  # the last token has to be run again for its logits
            cached = min(cached, len(request.ids) - 1)
        if request.score_from is not None:
            cached = min(cached, request.score_from - 1)
        self.cache.hold(match.node)
        self._state.seat(len(self.rows), request)
        return Row(ticket, match, cached, self._eos_ids)

    def _fill(self, new: range) -> None:
        """Copy cached prefixes into slots; rows forked from one prefix share the work."""
        forks: dict[tuple[int, int], list[int]] = {}
        for i in new:
            row = self.rows[i]
            if row.cached:
                forks.setdefault((id(row.match.node), row.cached), []).append(i)
        for (_, cached), (leader, *others) in forks.items():
            for start, keys, values in self.cache.pieces(self.rows[leader].match, cached):
                self._decoder.slots.put(leader, start, keys, values)
            if others:
                self._decoder.slots.copy(leader, others, cached)

    def _prefill(self, new: range) -> dict[int, Floats]:
        """Run what was not cached; the logits after each prompt, by row."""
        logits = {i: known for i in new if (known := self.rows[i].match.logits) is not None}
        parts, wanted, owners = [], [], []
        for i in new:
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
            self.cache.release(row.match.node)
            self._close_gap(index)
            row.ticket.settle(row.completion())

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
