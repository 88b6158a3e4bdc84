"""What decoding and sampling need of all rows at once, as arrays with an entry a row."""

from __future__ import annotations

import numpy as np

from marco_search.runtime.embedded.requests import GenerationRequest
from marco_search.runtime.embedded.sampling import AHEAD, Manner, Numbers, numbers_for


class RowState:
    """Room for `max_rows` rows. Entries past the rows in use mean nothing."""

    def __init__(self, max_rows: int) -> None:
        self.current = np.zeros(max_rows, np.int64)  # token to append at the next step
        self.length = np.zeros(max_rows, np.int64)  # tokens in the slot
        self._made = np.zeros(max_rows, np.int64)  # tokens generated
        self._numbers = np.zeros((max_rows, AHEAD), np.float64)  # that decide the next ones
        self._temperatures = np.zeros(max_rows, np.float32)
        self._top_ps = np.ones(max_rows, np.float32)

    def seat(self, row: int, request: GenerationRequest) -> None:
        """Begin a row whose slot will hold its prompt."""
        self.length[row] = len(request.ids)
        self._made[row] = 0
        self._numbers[row] = numbers_for(request.seed, 0)
        self._temperatures[row] = request.temperature
        self._top_ps[row] = request.top_p

    def move(self, source: int, target: int) -> None:
        """Let row `source` take the place of row `target`."""
        for state in (
            self.current,
            self.length,
            self._made,
            self._numbers,
            self._temperatures,
            self._top_ps,
        ):
            state[target] = state[source]

    def manner(self, rows: slice) -> Manner:
        """How these rows are to be sampled."""
        return Manner(self._temperatures[rows], self._top_ps[rows])

    def next_numbers(self, rows: slice) -> Numbers:
        """The numbers of these rows' next tokens, which count as generated from now on."""
        made = self._made[rows]
        numbers = self._numbers[rows][np.arange(len(made)), made % AHEAD]
        made += 1
        return numbers

    def renew_numbers(self, row: int, seed: int) -> None:
        """Make the numbers of the AHEAD tokens to come."""
        self._numbers[row] = numbers_for(seed, int(self._made[row]))
