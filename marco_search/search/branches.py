"""Requests of the search to a runtime, and their results: plain frozen values.

The search names a node's text (`Expansion.prefix`) and the branches to fork from it; the
runtime answers each `BranchRequest` with one `Branch`: the generated tokens with their
log-probabilities, up to a terminal state. Neither side knows more about the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import ClassVar

from marco_search.errors import PromptTooLong

TOP_K = 5
"""Candidates per position that the confidence is computed over (Marco-o1, section 4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFormat:
    """How a model writes its turn: a thought, then an answer. The defaults are Marco-o1's.

    If `end_of_thought` is "", thoughts have no tags. The answer then begins with the sentence
    that contains one of `answer_starts`, else with the last sentence of a turn that has ended.
    """

    # Checked by pydantic (see `SearchConfig.from_json`): unknown fields are refused.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    opening: str = "<Thought>\n"  #: put after the rendered prompt
    thought: str = "<Thought>"
    end_of_thought: str = "</Thought>"
    output: str = "<Output>"  #: "": the output has no tags
    end_of_output: str = "</Output>"
    stops: tuple[str, ...] = ("</Output>",)  #: end a branch, as the end of the sequence does
    answer_starts: tuple[str, ...] = ()
    #: The reflection prompt; the default is that of Marco-o1, section 5.
    reflection: str = "Wait! Maybe I made some mistakes! I need to rethink from scratch."

    @property
    def thought_ends(self) -> tuple[str, ...]:
        """The texts at which a thought ends."""
        return (self.end_of_thought,) if self.end_of_thought else self.answer_starts

    def end_in(self, text: str) -> int:
        """Index in `text` of the first of `thought_ends`; -1 if there is none."""
        return min((at for at in map(text.find, self.thought_ends) if at >= 0), default=-1)


MARCO_O1 = TurnFormat()


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat prompt. `role` is "system", "user" or "assistant"."""

    role: str
    content: str


class ReflectionPlacement(StrEnum):
    """Where a branch gets the reflection phrase."""

    NO = "no"
    #: The phrase is inserted before anything is generated.
    FIRST = "first"
    #: The phrase replaces the first of `TurnFormat.thought_ends` in the text that is continued.
    #: The tokens of that end were generated and stay in the branch's first segment.
    AT_END = "at_end"


class Finish(StrEnum):
    """Why a branch ended."""

    #: Terminal: end of output or end of sequence.
    STOP = "stop"
    #: max_new_tokens reached; the text may be continued.
    LENGTH = "length"
    #: The runtime returned an error value; the text so far is not used.
    FAILED = "failed"


def without_room(error: str | None) -> bool:
    """Whether a branch or rollout with this error failed because its text fills the context."""
    return error is not None and error.startswith(PromptTooLong.__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRequest:
    """One child of a fork. `branch_id` counts up from 0 within a job."""

    branch_id: int
    seed: int  #: 0 <= seed < 2**31, as SGLang's sampling_seed takes it
    max_new_tokens: int
    temperature: float  #: 0 is greedy
    top_p: float = 1.0
    reflect: ReflectionPlacement = ReflectionPlacement.NO


Part = str | tuple[int, ...]
"""A part of a prefix: inserted text, or the ids of tokens that the model generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """Fork `prefix` (prompt and the path's text) into `branches`.

    `parts` is the same in parts, the prompt first. A text has several tokenisations; with the ids
    a runtime can continue from the very tokens whose log-probabilities are stored.
    """

    node_id: int
    prefix: str
    branches: tuple[BranchRequest, ...]
    parts: tuple[Part, ...] = ()
    turn: TurnFormat = MARCO_O1  #: the stop texts and the reflection phrase

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", self.parts or (self.prefix,))


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. Log-probabilities are natural logs, held as float32 values.

    `text` is the part of the segment this token completes: texts of a segment's tokens
    joined are the segment's text. A token inside a multi-byte character has text ""; the
    token that completes the character carries it.
    """

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...]  #: up to TOP_K (token id, log-prob), best first


def text_ends(tokens: Sequence[Token]) -> list[int]:
    """For each token the end of its text in the joined text."""
    return list(accumulate(len(t.text) for t in tokens))


def tokens_before(tokens: Sequence[Token], at: int) -> Sequence[Token]:
    """The tokens before character `at` of their joined text."""
    return tokens[: bisect_right(text_ends(tokens), at)]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of generated tokens, or text inserted by the search (then `tokens` is empty)."""

    text: str
    tokens: tuple[Token, ...] = ()

    @property
    def forced(self) -> bool:
        """True for text that the model did not generate (the reflection phrase)."""
        return not self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """The answer to one BranchRequest: everything after the expansion's prefix."""

    branch_id: int
    segments: tuple[Segment, ...] = ()
    finish: Finish
    prompt_tokens: int = 0  #: tokens of the prefix
    cached_tokens: int = 0  #: of those, served from the prefix cache
    error: str | None = None  #: why it failed, or why it has no `scores`
    #: Set by the caller of a search whose reward is external (`rewards.EXTERNAL`); in [0, 1].
    scores: tuple[float, ...] | None = None
    seconds: float = field(default=0.0, compare=False)
    #: Texts of the candidates by token id: for people, the search does not use them.
    texts: Mapping[int, str] = field(default_factory=dict, compare=False, repr=False)

    def continuation(self, turn: TurnFormat) -> str:
        """The text after the prefix, without an end of thought that a reflection replaced.

        Whole tokens, as in the tree: the token in which that end begins is left out entirely.
        """
        texts = [s.text for s in self.segments]
        for i, segment in enumerate(self.segments):
            if i and segment.forced and (end := turn.end_in(texts[i - 1])) >= 0:
                before = tokens_before(self.segments[i - 1].tokens, end)
                texts[i - 1] = "".join(t.text for t in before)
        return "".join(texts)

    @property
    def generated_tokens(self) -> int:
        """Number of tokens the model generated in this branch."""
        return sum(len(s.tokens) for s in self.segments)
