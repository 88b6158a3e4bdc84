"""The seam between a search and whatever generates text.

A `Runtime` answers expansions with branches. `EmbeddedRuntime` decodes in process,
`EndpointRuntime` talks to SGLang servers; both run the same fork program.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from marco_search.search.branches import Branch, Expansion, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInfo:
    """What generated an answer: enough to replay it. Stored on every attempt."""

    name: str  # "embedded" or "sglang"
    version: str  # of the engine
    model: str  # model name as the server gives it, or the folder's name
    revision: str  # sha256 of the weights for a folder; the server's weight version else
    context_tokens: int  # longest prompt plus answer


_CONTROL = re.compile(r"<(?=\|\w+\|>)")


def strip_control_tokens(text: str) -> str:
    """`text` with control tokens (<|im_end|> and the like) made ordinary text.

    Prompts are tokenised as one text, so a caller's "<|im_end|>" would otherwise end its turn.
    """
    return _CONTROL.sub("< ", text)


class Runtime(Protocol):
    """Generates branches. One instance serves one search at a time, or several threads."""

    @property
    def info(self) -> RuntimeInfo:
        """The model and engine behind this runtime."""
        ...

    def render(self, messages: Sequence[Message]) -> str:
        """The chat prompt as text, ready for the assistant's turn (the model's template)."""
        ...

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """Run all branches of all expansions at once and wait for them.

        Returns one Branch per request, ordered by expansion, then by request. A branch that
        failed is a Branch with `finish=FAILED`; the others stand.
        Raises RuntimeUnavailable when nothing could be run, PromptTooLong when a prefix
        leaves no room for an answer.
        """
        ...

    def abort(self) -> None:
        """Called from another thread: what is in flight fails at once, `branch` returns.

        A later call of `branch` is not touched. Does nothing when nothing is in flight.
        """
        ...

    def close(self) -> None:
        """Stop threads and drop connections. A closed runtime can't be used again."""
        ...
