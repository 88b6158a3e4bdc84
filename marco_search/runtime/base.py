"""The interface between a search and whatever generates text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from marco_search.jobs.validation import at_most, spelt
from marco_search.search.branches import Branch, Expansion, Message
from marco_search.text import HIDDEN, one_line, redacted

UNKNOWN = "unknown"
"""A version, model or revision that the server does not report."""


_Text = Annotated[str, at_most(1024, empty=True)]


class Training(BaseModel):
    """What a model was fine-tuned from and on: the marco_training.json of its folder."""

    model_config = ConfigDict(frozen=True, strict=True)

    parent_model: _Text
    parent_revision: _Text
    #: manifest_sha256 of each data set
    manifests: list[Annotated[str, spelt("[0-9a-f]{64}", "a SHA-256 in hex")]] = Field(
        max_length=1000
    )
    config_sha256: _Text | None = None
    method: _Text  #: sft or dpo
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInfo:
    """What generated an answer, in enough detail to replay it. Stored with every attempt."""

    name: str  #: of the runtime: "embedded", "sglang" or "openai"
    version: str  #: of the engine
    model: str  #: as the server names it, or the folder's name
    revision: str  #: sha256 of a folder's weights, or the server's weight version
    context_tokens: int  #: longest prompt plus answer
    exact: bool = False  #: whether the same version generates the same bits again
    #: What it does not support, in words for people. Not stored.
    lacks: tuple[str, ...] = ()
    tokenizer: str = ""  #: folder or Hub name of a server's tokenizer, if it says
    training: Training | None = None  #: None: unknown, or not fine-tuned here
    own_template: bool = True  #: False: prompts are in ChatML, as no chat template was found


class Render(Protocol):
    """Messages to the prompt text of one model, ready for the assistant's turn.

    `options` are further variables of its chat template, such as enable_thinking.
    """

    def __call__(
        self, messages: Sequence[Message], options: Mapping[str, Any] | None = None
    ) -> str: ...


class Runtime(Protocol):
    """Generates branches. One instance serves one search at a time, or several threads."""

    @property
    def info(self) -> RuntimeInfo:
        """The model and engine behind this runtime."""
        ...

    def render(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None) -> str:
        """The chat prompt by the model's template (see `Render`)."""
        ...

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """Generate all branches of all expansions at once and wait for them.

        Returns one Branch per request, ordered by expansion, then by request. A branch that
        failed is a Branch with `finish=FAILED`; the others stand. The error of one whose prefix
        leaves no room for an answer begins with "PromptTooLong: ".
        Raises RuntimeUnavailable when nothing could be run.
        """
        ...

    def abort(self) -> None:
        """Called from another thread: fail all branches in flight at once; `branch` returns.

        Later calls of `branch` are not affected. Does nothing when nothing is in flight.
        """
        ...

    def close(self) -> None:
        """Stop threads and drop connections. A closed runtime can't be used again."""
        ...


# <|im_end|> and the like, DeepSeek's with wide bars; <end_of_turn> of Gemma, [INST] of Mistral.
_CONTROL = re.compile(r"<(?=[|\uff5c][^<>\s]+[|\uff5c]>|(?:start|end)_of_turn>)|\[(?=/?INST\])")


def strip_control_tokens(text: str, specials: Iterable[str] = ()) -> str:
    """`text` with control tokens (<|im_end|> and the like) turned into ordinary text.

    Prompts are tokenised as one text, so a caller's "<|im_end|>" would otherwise end its turn.
    `specials` are further ones, of the model.
    """
    for special in specials:
        if len(special) > 1 and not special[0].isalnum():  # otherwise words would be split
            text = text.replace(special, f"{special[0]} {special[1:]}")
    return _CONTROL.sub(r"\g<0> ", text)


_LONGEST_QUOTE = 500  # characters
_HEADER = re.compile(r"""(?i)(authorization\W{1,8})(?:(?:bearer|basic)\s+)?[^\s"',;}\\]+""")


def quoting(key: str | None) -> Callable[[str], str]:
    """A function that prepares a server's text for logs: short, one line, without the key."""
    # Verbatim, in JSON, and in a URL.
    forms = {key, json.dumps(key)[1:-1], quote(key, safe="")} if key else set()

    def quoted(text: str) -> str:
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, HIDDEN)
        text = one_line(redacted(_HEADER.sub(rf"\1{HIDDEN}", text)))
        return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "..."

    return quoted
