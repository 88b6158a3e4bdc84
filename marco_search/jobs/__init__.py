"""Jobs and their results: what every kind of job (marco_search.kinds) has in common."""

from marco_search.jobs.requests import (
    MAX_TEXT_CHARS,
    Job,
    MetadataValue,
    SearchOptions,
    SearchOptionsDict,
    payload_hash,
)
from marco_search.jobs.results import Answer, JobResult, JobState

__all__ = [
    "MAX_TEXT_CHARS",
    "Answer",
    "Job",
    "JobResult",
    "JobState",
    "MetadataValue",
    "SearchOptions",
    "SearchOptionsDict",
    "payload_hash",
]
