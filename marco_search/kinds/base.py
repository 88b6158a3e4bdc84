"""What every job kind can do: ask the model, and read an answer out of its turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from marco_search.jobs import Job
from marco_search.kinds.answers.sections import output_of, thought_of
from marco_search.kinds.system_prompts import system_prompt
from marco_search.runtime.base import Message

JobT = TypeVar("JobT", bound=Job)


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    """An answer found in an Output part."""

    key: str  # normalised: votes are counted on it
    display: str  # as a reader should see it


class Kind(ABC, Generic[JobT]):
    """One job kind. Stateless and pure.

    `text` is always the assistant's turn, with or without the leading "<Thought>" tag;
    `finished` says whether the model ended it itself (marco_search.kinds.sections has the
    rules for turns without all their tags).
    """

    name: ClassVar[str]
    assistant_prefix: ClassVar[str] = "<Thought>\n"
    """Put after the rendered prompt, so that the turn begins inside the thought."""
    answer_width: ClassVar[int] = 3
    """Samples worth drawing where a thought ends (`SearchConfig.answer_width`)."""
    one_answer: ClassVar[bool] = False
    """Whether one answer is right. If so a strategy may reflect and stop at a clear lead."""

    @abstractmethod
    def user_turn(self, job: JobT) -> str:
        """The text of the user's turn. Never reads `job.expected`."""

    @abstractmethod
    def read(self, output: str) -> ExtractedAnswer | None:
        """The answer in an Output part; None if it holds nothing that can be one."""

    def messages(self, job: JobT) -> list[Message]:
        """The chat prompt: the job's system prompt, if it has one, and the user's turn."""
        system = system_prompt(job.system_prompt)
        turns = [] if system is None else [Message(role="system", content=system)]
        return [*turns, Message(role="user", content=self.user_turn(job))]

    def thought(self, text: str) -> str:
        """The Thought part of a turn, without its tags."""
        return thought_of(text)

    def output(self, text: str, *, finished: bool = True) -> str | None:
        """The Output part of a turn, without its tags; None if there is none."""
        return output_of(text, finished=finished)

    def answer(self, text: str, *, finished: bool = True) -> ExtractedAnswer | None:
        """The answer in a turn; None if there is none."""
        output = self.output(text, finished=finished)
        return None if output is None else self.read(output)

    def answer_key(self, text: str, *, finished: bool = True) -> str | None:
        """The key of the answer in a turn: what a search counts votes on."""
        found = self.answer(text, finished=finished)
        return None if found is None else found.key

    def merge(self, answers: Sequence[tuple[str, float]]) -> list[str]:
        """For each (key, value) pair, in order, the key it counts under.

        That is where near-duplicates become one answer. Here: its own.
        """
        return [key for key, _ in answers]

    def equal(self, found: str, expected: str) -> bool:
        """Whether two answers, both written as an Output part would be, are the same one."""
        a, b = self.read(found), self.read(expected)
        return a is not None and b is not None and a.key == b.key
