"""Prefixes as token ids, so that a branch goes on from the very tokens that the trail holds.

As a text a prefix would be tokenised anew, and not always into the tokens that were generated.
The server itself says what the text that we put in is in tokens (/tokenize).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from marco_search.runtime.sglang.calls import Call
from marco_search.runtime.sglang.failures import Failure, odd_answer
from marco_search.runtime.tokens import LARGEST_ID

PARTS = "parts"
"""Key of a request's prefix in parts, as `Expansion.parts`. It is not sent."""

_PATH = "/tokenize"
_REMEMBERED = 256  # texts: a prompt for each search, and the reflection phrase

Post = Callable[[str, Mapping[str, Any], Call], dict[str, Any] | Failure]


class PromptIds:
    """Turns requests with parts into requests with `input_ids`. Safe to use from many threads."""

    def __init__(self, url: str, post: Post) -> None:
        self.known = False  # whether the server has /tokenize
        self._url = url
        self._post = post
        self._lock = threading.Lock()
        self._ids: OrderedDict[tuple[str, bool], list[int]] = OrderedDict()

    def look(self, call: Call) -> None:
        """See whether the server can say what a text is in tokens."""
        self.known = isinstance(self._ask("a", True, call), list)

    def sent(self, body: Mapping[str, Any], call: Call) -> dict[str, Any] | Failure:
        """The request as it is sent: with `input_ids` where that can be, else with the text."""
        rest = {name: value for name, value in body.items() if name != PARTS}
        parts = body.get(PARTS)
        if not parts or not self.known:
            return rest
        ids: list[int] = []
        for i, part in enumerate(parts):
            found = self._of(part, i == 0, call) if isinstance(part, str) else part
            if isinstance(found, Failure):
                return found
            ids += found
        del rest["text"]
        return rest | {"input_ids": ids}

    def _of(self, text: str, first: bool, call: Call) -> list[int] | Failure:
        with self._lock:
            found = self._ids.pop((text, first), None)
            if found is not None:
                self._ids[text, first] = found
                return found
        asked = self._ask(text, first, call)
        if not isinstance(asked, Failure):
            with self._lock:
                self._ids[text, first] = asked
                if len(self._ids) > _REMEMBERED:
                    self._ids.popitem(last=False)
        return asked

    def _ask(self, text: str, first: bool, call: Call) -> list[int] | Failure:
        """Only the first text may get what begins a sequence, as it would if it were sent."""
        answer = self._post(_PATH, {"prompt": text, "add_special_tokens": first}, call)
        if isinstance(answer, Failure):
            return answer
        ids = answer.get("tokens")
        if isinstance(ids, list) and all(type(i) is int and 0 <= i <= LARGEST_ID for i in ids):
            return ids
        return odd_answer(self._url, _PATH, "the answer has no token ids")
