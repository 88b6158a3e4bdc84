"""What the candidates in a token's place would have read.

The trail keeps their ids only. A tokenizer knows them all; without it those that were
generated anywhere in the same tree are known, and the others are shown by number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from marco_search.store.job_record import NodeTokens

Spell = Callable[[int], str]
"""Token id to its text; "" where there is none."""


class Vocabulary:
    """Texts of token ids."""

    def __init__(self, rows: Iterable[NodeTokens], spell: Spell | None = None) -> None:
        """`spell` is the tokenizer of the job's model, where it is at hand."""
        self._spell = spell
        self._seen: dict[int, str] = {}
        for row in rows:
            # "" is a part of a character; what a token reads elsewhere is better.
            self._seen.update(
                (i, t) for i, t in zip(row.token_ids, row.token_texts, strict=True) if t
            )

    def text(self, token_id: int) -> str | None:
        """The token's text; None if nothing here knows it."""
        return (self._spell(token_id) if self._spell else "") or self._seen.get(token_id)
