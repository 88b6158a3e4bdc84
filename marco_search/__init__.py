"""marco-search: answers jobs by tree search over a language model and keeps every tree.

`from marco_search import solve` runs a whole search as a library call, without any service;
`Producer` submits jobs to be searched by workers. Names are loaded on first use, so that a
process that only submits does not load the engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marco_search.engine import solve
    from marco_search.errors import (
        Backpressure,
        InvalidJob,
        JobNotFound,
        MarcoError,
        RuntimeUnavailable,
        ServiceError,
        WaitTimeout,
    )
    from marco_search.jobs import Answer, Job, JobResult, JobState, SearchOptions
    from marco_search.kinds import OpenEndedJob, ReasoningJob, TranslationJob, parse_job
    from marco_search.runtime import open_runtime
    from producer import AsyncProducer, JobHandle, JobStatus, Producer

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "AsyncProducer",
    "Backpressure",
    "InvalidJob",
    "Job",
    "JobHandle",
    "JobNotFound",
    "JobResult",
    "JobState",
    "JobStatus",
    "MarcoError",
    "OpenEndedJob",
    "Producer",
    "ReasoningJob",
    "RuntimeUnavailable",
    "SearchOptions",
    "ServiceError",
    "TranslationJob",
    "WaitTimeout",
    "__version__",
    "open_runtime",
    "parse_job",
    "solve",
]
_HEAVY = {
    "solve": "marco_search.engine",
    "open_runtime": "marco_search.runtime",
    **dict.fromkeys(("AsyncProducer", "JobHandle", "JobStatus", "Producer"), "producer"),
}
_LIGHT = ("marco_search.errors", "marco_search.jobs", "marco_search.kinds")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in (_HEAVY[name],) if name in _HEAVY else _LIGHT:
            found = getattr(import_module(module), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
