"""What the candidates in a token's place would have read."""

from __future__ import annotations

from collections.abc import Collection

from marco_search.store.reads.job_record import NodeTokens


class Vocabulary:
    """Texts of token ids, as far as these tokens and their candidates tell them."""

    def __init__(self, rows: Collection[NodeTokens]) -> None:
        self._texts: dict[int, str] = {}
        for row in rows:
            # "" is a part of a character; what a token reads elsewhere is better.
            self._texts |= {i: t for i, t in zip(row.token_ids, row.token_texts, strict=True) if t}
        for row in rows:
            self._texts |= {i: t for i, t in zip(row.top_ids, row.top_texts, strict=True) if t}

    def text(self, token_id: int) -> str | None:
        """The token's text; None if nothing here knows it."""
        return self._texts.get(token_id)
