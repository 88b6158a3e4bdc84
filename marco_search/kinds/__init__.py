"""Job kinds: how each asks the model, and how its answer is read and compared."""

from __future__ import annotations

from typing import Any

from marco_search.jobs import Job
from marco_search.kinds.base import ExtractedAnswer, Kind
from marco_search.kinds.open_ended import OpenEnded
from marco_search.kinds.reasoning import Reasoning
from marco_search.kinds.translation import Translation

KINDS: dict[str, Kind[Any]] = {k.name: k for k in (Reasoning(), Translation(), OpenEnded())}
"""Kind name to kind."""

__all__ = ["KINDS", "ExtractedAnswer", "Kind", "kind_of"]


def kind_of(job: Job) -> Kind[Any]:
    """The kind that handles `job`."""
    return KINDS[job.kind]
