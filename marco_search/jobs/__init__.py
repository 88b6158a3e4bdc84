"""Jobs and their results: the types that users of marco-search import."""

from marco_search.jobs.options import Reflection, SearchOptions, Strategy
from marco_search.jobs.parsing import job_from_json_line, parse_job, payload_hash
from marco_search.jobs.requests import (
    JOB_MODELS,
    Job,
    MetadataValue,
    OpenEndedJob,
    ReasoningJob,
    TranslationJob,
)
from marco_search.jobs.results import Answer, JobKind, JobResult
from marco_search.jobs.text import MAX_TEXT_CHARS

__all__ = [
    "JOB_MODELS",
    "MAX_TEXT_CHARS",
    "Answer",
    "Job",
    "JobKind",
    "JobResult",
    "MetadataValue",
    "OpenEndedJob",
    "ReasoningJob",
    "Reflection",
    "SearchOptions",
    "Strategy",
    "TranslationJob",
    "job_from_json_line",
    "parse_job",
    "payload_hash",
]
