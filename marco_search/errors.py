"""Every exception that marco-search raises on purpose; all are MarcoErrors.

Messages name the field or variable, the reason, and what to do about it. They never hold a
secret: a URL is shown without its password.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class MarcoError(Exception):
    """Base of all errors raised by marco-search.

    `retryable` says whether the same call may succeed later without any change.
    `exit_code` is the exit code of the command line.
    """

    retryable: bool = False
    exit_code: int = 1

    def __reduce__(self) -> tuple[Any, ...]:
        # By default unpickling, as in a process pool, would call __init__ with the message alone.
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[MarcoError], args: tuple[Any, ...]) -> MarcoError:
    """Restore an error that was pickled or copied."""
    return kind.__new__(kind, *args)


class InputError(MarcoError):
    """The caller's data is wrong. Nothing was stored and nothing was sent."""

    exit_code = 2


class InvalidJob(InputError):
    """A job can't be accepted: the message names the field and the reason.

    `index` says which of several jobs, where only the database could tell.
    """

    def __init__(self, field: str, reason: str, index: int | None = None) -> None:
        self.field = field
        self.reason = reason
        self.index = index
        super().__init__(f"{field}: {reason}")


class InvalidBatch(InputError):
    """Some lines of a file of jobs can't be accepted. `errors` has one entry for each."""

    def __init__(self, source: str, errors: Sequence[InvalidJob]) -> None:
        self.errors = tuple(errors)
        count = f"{len(errors):,} bad line{'' if len(errors) == 1 else 's'}"
        # Otherwise a file of another format would fill the screen.
        shown = [str(error) for error in errors[:100]]
        if len(errors) > len(shown):
            shown.append(f"and {len(errors) - len(shown):,} more")
        lines = "".join(f"\n  {line}" for line in shown)
        super().__init__(f"{source}: {count}, nothing was submitted{lines}")


class AmbiguousJob(InputError):
    """The beginning of an id matches several jobs: give more of it."""


class QueryRefused(InputError):
    """A query is not read-only, not valid SQL, or took too long."""


class InvalidDataSet(InputError):
    """A set of problems or a file of results can't be used: the message names the place."""


class CalibrationFailed(InputError):
    """The model's answers are no basis for a calibration: the message says what to change."""


class InvalidAnchor(InputError):
    """An anchor, or the key to sign it with, can't be used: the message says why."""


class ArchiveRefused(InputError):
    """A month can't be archived, or a folder is not an archive: the message says why."""


class RedactionRefused(InputError):
    """A job's texts can't be replaced now: the message says what to do first."""


class AccessDenied(InputError):
    """The login in DATABASE_URL has no right to do this: an auditor only reads the views."""


class InvalidSettings(InputError):
    """An environment variable has a value that can't be used."""


class NotOffered(InvalidSettings):
    """A search needs a verifier or a reward model that is not configured where it runs."""


class InvalidProfile(InputError):
    """A profile is invalid, or there is none of that name: the message names the field."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        self.reason = reason
        self.field = field
        super().__init__(f"{field}: {reason}" if field else reason)


class IdempotencyConflict(InputError):
    """The idempotency key already belongs to a job with another payload.

    `index` says which of the jobs submitted has the key.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        self.index = index
        super().__init__(message)


class InvalidApiKey(InputError):
    """A request has no API key, or an unknown, revoked or expired one."""


class ModelNotFound(InvalidJob):
    """The `model` of a chat completion names neither a strategy nor a profile."""


class JobNotFound(MarcoError):
    """No job with this id is visible to this tenant."""

    exit_code = 3


class BatchNotFound(JobNotFound):
    """No batch with this id is visible to this tenant."""


class FileNotFound(JobNotFound):
    """No file with this id was uploaded by this tenant, or it has expired."""


class Backpressure(MarcoError):
    """Too much is queued already. Nothing was stored; the same call may succeed later.

    `retry_after_s` is a hint when to try again; None: never, as it exceeds the limit by itself.
    """

    exit_code = 8

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        self.retry_after_s = retry_after_s
        hint = "" if retry_after_s is None else f"; try again in {retry_after_s:g} s"
        super().__init__(message + hint)

    @property
    def retryable(self) -> bool:  # type: ignore[override]
        """Whether the same call may succeed later."""
        return self.retry_after_s is not None


class QueueFull(Backpressure):
    """The queue holds MARCO_MAX_QUEUED jobs, the maximum for all tenants together."""


class QuotaExceeded(Backpressure):
    """The tenant's quota of queued jobs is used up."""


class RateLimitExceeded(Backpressure):
    """The API key has exceeded its rate limit."""


class ServiceError(MarcoError):
    """A service that marco-search needs is unavailable or broken."""

    retryable = True
    exit_code = 4


class DatabaseUnavailable(ServiceError):
    """Postgres can't be reached at DATABASE_URL."""


class BrokerUnavailable(ServiceError):
    """Redis can't be reached at REDIS_URL."""


class CollectorUnavailable(ServiceError):
    """The OpenTelemetry collector did not accept what was sent."""


class DownloadFailed(ServiceError):
    """A model could not be downloaded or installed: the message says why. Nothing is kept."""


class LocalServiceFailed(ServiceError):
    """The embedded Postgres or Redis did not start; the message points to its log."""


class AddressTaken(ServiceError):
    """The console, the API or the metrics can't listen at the given host and port."""


class SchemaMismatch(MarcoError):
    """The database's migration is not the one this code was written for."""

    exit_code = 4


class RightsMissing(MarcoError):
    """The login in DATABASE_URL, or the API key, lacks the right; the message says who has it."""

    exit_code = 2


class RuntimeFailure(MarcoError):
    """The language runtime failed."""

    exit_code = 5


class RuntimeUnavailable(RuntimeFailure):
    """The runtime is unreachable or overloaded; the job may be tried again later."""

    retryable = True


class ModelRefused(RuntimeFailure):
    """The model folder can't be used, or the model is not the requested one."""


class PromptTooLong(RuntimeFailure):
    """The prompt leaves no room for an answer in the model's context window."""


class BranchFailed(RuntimeFailure):
    """One branch of a fork failed. The search continues with the other branches."""

    retryable = True


class SearchError(MarcoError):
    """The search core was used against its protocol (a bug in the caller)."""


class AnotherVersion(MarcoError):
    """A stored job, written by another version, has fields or values unknown to this one."""


class RoundTooLong(MarcoError):
    """An attempt's time was up before its first round; the next one may be faster."""

    retryable = True


class LeaseLost(MarcoError):
    """Another worker holds this job now. Stop at once and write nothing more."""


class WorkerLost(MarcoError):
    """Several workers were lost while running this job: it is quarantined until requeued."""

    def __init__(self, workers: Sequence[str]) -> None:
        self.workers = tuple(workers)
        super().__init__(
            f"{len(workers)} workers were lost while running it ({', '.join(workers)}); it is "
            "quarantined: find out why, then run `marco dead requeue`"
        )


class DeadlinePassed(MarcoError):
    """The job's deadline passed before a worker started it: there is no answer."""


class JobFailed(MarcoError):
    """A job that was waited for did not succeed; the message says why."""

    exit_code = 7


class WaitTimeout(MarcoError):
    """The wait ended before the job did. The job itself continues."""

    exit_code = 6


class VerificationStopped(MarcoError):
    """A worker process of the verification was killed: its part was not checked."""

    retryable = True


class TrailBroken(MarcoError):
    """Source jobs do not verify: nothing was made from them."""

    exit_code = 9
