"""Reasoning jobs: one right answer, compared by exact value where it is a number."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marco_search.jobs import Job, Text
from marco_search.kinds.base import ExtractedAnswer, Kind


class ReasoningJob(Job):
    """A question with one right answer: a number, an option, yes or no, a few words."""

    subject_field: ClassVar[str] = "question"

    kind: Literal["reasoning"] = Field(
        default="reasoning", description="Says which kind of job it is"
    )
    question: Text = Field(description="The question")


class Reasoning(Kind[ReasoningJob]):
    """Numbers are compared by exact value, everything else by normalised text."""

    model = ReasoningJob
    answer_width = 1  # what follows a finished calculation is settled
    one_answer = True

    def read(self, output: str) -> ExtractedAnswer | None:
        """The answer in an Output part (marco_search.kinds.answers.reading)."""
        # Its patterns take a while to compile, and a producer never reads an answer.
        from marco_search.kinds.answers.reading import read_answer

        return read_answer(output)
