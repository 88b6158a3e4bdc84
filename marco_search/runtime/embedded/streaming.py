"""Text as it is generated: whole characters only, and never a part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from marco_search.runtime.embedded.tokenizer import Tokenizer


class TextStream:
    """Turns tokens, one by one, into the text that is safe to show."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self.tokens = 0
        self._tokenizer = tokenizer
        self._stops = [s for s in stops if s]
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._text = ""
        self._shown = 0

    def feed(self, token: int) -> str:
        """The new text that can't turn out to be part of a stop string; often ""."""
        self.tokens += 1
        self._text += self._decode(self._tokenizer.bytes_of(token))
        end = len(self._text)
        for stop in self._stops:
            # Hold back the longest end of the text that a stop string may begin with.
            found = self._text.find(stop, max(0, self._shown - len(stop)))
            held = range(min(len(stop) - 1, len(self._text)), 0, -1)
            partial = next((n for n in held if self._text.endswith(stop[:n])), 0)
            end = min(end, found if found >= 0 else len(self._text) - partial)
        return self._show(self._text, end)

    def rest(self, text: str) -> str:
        """What of the final `text` was not shown yet."""
        return self._show(text, len(text))

    def _show(self, text: str, end: int) -> str:
        piece = text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece
