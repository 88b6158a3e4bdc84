"""A kind of job that the product does not have: what a newcomer would write."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marco_search.jobs import Job, Text
from marco_search.kinds.base import ExtractedAnswer, Kind


class SortingJob(Job):
    """A list to sort."""

    subject_field: ClassVar[str] = "items"

    kind: Literal["sorting"] = Field("sorting", description="Says which kind of job it is")
    items: Text = Field(description="The items, separated by commas")
    order: Literal["up", "down"] = Field("up", description="up or down")


class Sorting(Kind[SortingJob]):
    """The same items in the same order are the same answer."""

    model = SortingJob
    one_answer = True

    def user_turn(self, job: SortingJob) -> str:
        """For example "Sort up: fig, pear"."""
        return f"Sort {job.order}: {job.items}"

    def read(self, output: str) -> ExtractedAnswer | None:
        """The items without the spaces between them."""
        key = ",".join(part.strip() for part in output.split(","))
        return ExtractedAnswer(key, output.strip()) if key else None
