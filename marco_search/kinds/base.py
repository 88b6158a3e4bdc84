"""The base of job kinds: they ask the model, and read an answer from its turn.

A turn is `<Thought> ... </Thought> <Output> ... </Output>`, in the tags of the model's
`TurnFormat`. It may begin inside the thought (`TurnFormat.opening` is put in by the search), and
models leave tags out:

- The output is the last closed <Output> block: after a reflection, the later one counts.
- An <Output> left open runs to the end of the turn; without one, the text after </Thought> is
  the output; without that either, the whole turn is.
- Where thoughts have no tags, the output is the text from the last of `answer_starts` on.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from marco_search.jobs import SYSTEM_PROMPTS, Job
from marco_search.jobs.validation import shown, storable
from marco_search.search.branches import MARCO_O1, Message, TurnFormat

log = logging.getLogger(__name__)

JobT = TypeVar("JobT", bound=Job)

TURN_END = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>")
"""Special tokens that a runtime may leave at the end of the text."""


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    """An answer found in an Output part. Characters that can't be stored become U+FFFD."""

    key: str  #: normalised: votes are counted on it
    display: str  #: as a reader should see it

    def __post_init__(self) -> None:
        for name in ("key", "display"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise TypeError(f"an answer's {name} must be text, not {shown(text)}")
            object.__setattr__(self, name, storable(text))


class Kind(ABC, Generic[JobT]):
    """A kind of job. Stateless and pure. `text` is always the assistant's turn, in its tags."""

    model: type[JobT]
    """The model of its jobs. The kind's name is the default of their `kind`."""
    answer_width: ClassVar[int] = 3
    """Samples to draw where a thought ends (`SearchConfig.answer_width`)."""
    one_answer: ClassVar[bool] = False
    """Whether only one answer is right. Strategies may then reflect, and stop at a clear lead."""

    @property
    def name(self) -> str:
        """The value of `kind` in jobs of this kind."""
        return str(self.model.model_fields["kind"].default)

    def user_turn(self, job: JobT) -> str:
        """The text of the user's turn, by default the subject. Never reads `job.expected`."""
        return job.subject

    @abstractmethod
    def read(self, output: str) -> ExtractedAnswer | None:
        """The answer in an Output part; None if it has none."""

    def messages(
        self, job: JobT, system: str = "", examples: Iterable[tuple[str, str]] = ()
    ) -> list[Message]:
        """The chat prompt: system prompt, solved examples (user, assistant) and the user's turn.

        `system` is for jobs without their own system prompt; empty: none.
        """
        system = job.system_prompt or system
        turns = [("system", SYSTEM_PROMPTS.get(system, system))] if system else []
        for user, assistant in examples:
            turns += [("user", user), ("assistant", assistant)]
        turns.append(("user", self.user_turn(job)))
        return [Message(role=role, content=content) for role, content in turns]

    def thought(self, text: str, turn: TurnFormat = MARCO_O1) -> str:
        """The Thought part alone: up to its end, else to the output, else to the end."""
        body = without_end(text, turn).lstrip()
        body = body.removeprefix(turn.thought)
        # A thought that continued after an end extends to its last end.
        end = _last(body, turn.thought_ends)
        if end < 0 and turn.output:
            end = body.find(turn.output)
        return (body if end < 0 else body[:end]).strip()

    def output(self, text: str, turn: TurnFormat = MARCO_O1) -> str | None:
        """The Output part alone; None if there is none or it is empty."""
        end = text.rfind(turn.end_of_output) if turn.output else -1
        start = text.rfind(turn.output, 0, end) if end >= 0 else -1
        if start >= 0:
            part = text[start + len(turn.output) : end]
        else:
            part = _open_output(without_end(text, turn), turn)
        return part.strip() or None

    def answer(self, text: str, turn: TurnFormat = MARCO_O1) -> ExtractedAnswer | None:
        """The answer in a turn; None if there is none."""
        output = self.output(text, turn)
        try:
            return None if output is None else self.read(output)
        except Exception:
            # It costs this rollout only: a model's text must not fail the job.
            log.exception("a %s answer can't be read", self.name)
            return None

    def answer_key(self, text: str, turn: TurnFormat = MARCO_O1) -> str | None:
        """The key of the answer in a turn: what a search counts votes on."""
        found = self.answer(text, turn)
        return None if found is None else found.key

    def merge(self, answers: Sequence[tuple[str, float]]) -> list[str]:
        """For each (key, value) pair, in order, the key that it counts under.

        This is where a kind merges near-duplicates; by default each key is its own.
        """
        return [key for key, _ in answers]

    def equal(self, found: str, expected: str) -> bool:
        """Whether two answers, both written as in an Output part, are the same."""
        a, b = self.read(found), self.read(expected)
        return a is not None and b is not None and a.key == b.key


def _open_output(text: str, turn: TurnFormat) -> str:
    after_thought, end = _last(text, turn.thought_ends), turn.end_of_thought
    start = text.rfind(turn.output) if turn.output else -1
    if start > after_thought:
        part = text[start + len(turn.output) :]
    elif after_thought >= 0:
        part = text[after_thought + len(end) :]
    else:
        part = text.lstrip().removeprefix(turn.thought)
    return part.removesuffix(turn.end_of_output)


def _last(text: str, texts: Sequence[str]) -> int:
    """Index in `text` of the last occurrence of any of `texts`; -1 if there is none."""
    return max(map(text.rfind, texts), default=-1)


def without_end(text: str, turn: TurnFormat) -> str:
    """A turn without special tokens and stop texts at its end, except an output's end tag."""
    text = text.rstrip()
    for end in (*TURN_END, *turn.stops):
        if end != turn.end_of_output:
            text = text.removesuffix(end).rstrip()
    return text
