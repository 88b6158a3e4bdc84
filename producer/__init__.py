"""Submit jobs and wait for their results.

    from producer import Producer, ReasoningJob

    with Producer() as producer:
        job = producer.submit(ReasoningJob(question="What is 17 x 23?"))
        print(producer.wait(job).answer)

A job is stored in Postgres before anything else happens: once `submit` has returned, it will
be run, whatever happens to this process, to Redis or to the workers.
"""

from marco_search.jobs import Answer, Job, JobResult, SearchOptions
from marco_search.kinds import OpenEndedJob, ReasoningJob, TranslationJob
from marco_search.store.queue.batches import Batch, BatchLine
from marco_search.store.queue.dead_letters import DeadLetter
from marco_search.store.queue.jobs import JobHandle
from marco_search.store.queue.states import JobState
from marco_search.store.reads.queries import JobStatus
from producer.async_client import AsyncProducer
from producer.client import Producer
from producer.handles import EVERYONE, JobId

__all__ = [
    "EVERYONE",
    "Answer",
    "AsyncProducer",
    "Batch",
    "BatchLine",
    "DeadLetter",
    "Job",
    "JobHandle",
    "JobId",
    "JobResult",
    "JobState",
    "JobStatus",
    "OpenEndedJob",
    "Producer",
    "ReasoningJob",
    "SearchOptions",
    "TranslationJob",
]
