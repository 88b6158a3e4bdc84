"""Uploads a file of requests as a batch, in parts; an interrupted upload can be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from marco_search.errors import Backpressure, IdempotencyConflict, InvalidJob
from marco_search.jobs import Job, SearchOptions, fill_options
from marco_search.jobs.validation import as_json, flaw, unstorable_in
from marco_search.kinds import job_from_json_line
from marco_search.store.queue.batches import Batch, BatchLine
from producer.handles import require

T = TypeVar("T")
log = logging.getLogger(__name__)

LONGEST_LINE = 4 * 2**20  # bytes
LONGEST_SOURCE = 4096  # characters
_NO_LINES = (str, bytes, Mapping, Job, io.TextIOBase)
PART_LINES = 500
PART_BYTES = 4 * 2**20


def lines_of(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a file that arrives in parts; a line beyond LONGEST_LINE is truncated."""
    most, rest = LONGEST_LINE + 1, b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        rest = rest[:most]
        yield from (line[:most] if len(line) >= most else line + b"\n" for line in lines)
    if rest:
        yield rest


def job_in(line: bytes, number: int, options: Mapping[str, Any]) -> Job | None:
    """The job in a line; None if it is empty. Raises InvalidJob."""
    if not line.strip():
        return None
    if len(line) > LONGEST_LINE:
        raise InvalidJob(f"line {number}", f"longer than {LONGEST_LINE:,} bytes")
    job = job_from_json_line(line, number)
    if not options:
        return job
    return job.model_copy(update={"options": fill_options(options, job.options)})


@dataclass(slots=True)
class Part:
    """Lines that are stored in one transaction."""

    before: int  #: number of lines before it
    deadline: datetime | None  #: deadline of jobs without one
    #: For each line the job, the refusal or None, and the digest of all lines up to it.
    taken: list[tuple[Job | BatchLine | None, str]] = field(default_factory=list)
    size: int = 0  #: bytes
    digest: str = ""  #: digest of all lines up to its end
    complete: bool = False
    one_by_one: bool = False  #: lines whose idempotency key belongs to another payload are refused

    @property
    def lines(self) -> int:
        """Number of lines."""
        return len(self.taken)

    @property
    def jobs(self) -> list[tuple[int, Job]]:
        """Its jobs with the numbers of their lines."""
        numbered = enumerate(self.taken, start=self.before + 1)
        return [(number, one) for number, (one, _) in numbered if isinstance(one, Job)]

    @property
    def refused(self) -> list[BatchLine]:
        """The refused lines."""
        return [one for one, _ in self.taken if isinstance(one, BatchLine)]

    @property
    def full(self) -> bool:
        """Whether it should be stored before the next line is read."""
        return self.lines >= PART_LINES or self.size >= PART_BYTES

    def halves(self) -> tuple[Part, Part]:
        """Its lines as two parts."""
        middle = self.lines // 2
        taken, rest = self.taken[:middle], self.taken[middle:]
        first = replace(self, taken=taken, digest=taken[-1][1], complete=False)
        return first, replace(self, before=self.before + middle, taken=rest)

    def add(self, number: int, line: bytes, options: Mapping[str, Any], digest: str) -> None:
        """Add a line; `digest` covers all lines up to it."""
        found: Job | BatchLine | None
        try:
            found = job_in(line, number, options)
            if self.deadline and found and found.deadline is None and found.expires_in_s is None:
                found = found.model_copy(update={"deadline": self.deadline})
        except InvalidJob as error:
            found = refusal(number, error, _custom_id(line))
        self.taken.append((found, digest))
        self.digest = digest
        self.size += len(line)


def refusal(number: int, error: InvalidJob, custom_id: str | None) -> BatchLine:
    """A refused line."""
    name = error.field.partition(", ")[2] or None
    return BatchLine(line=number, job_id=None, custom_id=custom_id, field=name, reason=error.reason)


def _custom_id(line: bytes) -> str | None:
    with contextlib.suppress(ValueError, RecursionError):
        data = json.loads(line)
        name = data.get("custom_id") if isinstance(data, dict) else None
        return (
            name[:256].replace("\0", "") if isinstance(name, str) and name.isprintable() else None
        )
    return None


def check(lines: object, source: object, options: object, metadata: object) -> None:
    """Raises InvalidJob for invalid arguments, before anything is stored."""
    several = isinstance(lines, Iterable) and not isinstance(lines, _NO_LINES)
    require(several, "lines", "lines of bytes, such as a file opened with 'rb'", lines)
    require(isinstance(source, str | None), "source", "text", source)
    if source is not None and (problem := flaw(str(source), LONGEST_SOURCE)):
        raise InvalidJob("source", problem)
    if options is not None:
        require(isinstance(options, Mapping), "options", "an object of names and values", options)
        SearchOptions.model_validate(options)
    if metadata is not None:
        named = isinstance(metadata, Mapping)
        require(named, "metadata", "an object of names and values", metadata)
        try:
            as_json(metadata)
        except ValueError as error:
            raise InvalidJob("metadata", str(error)) from None
        if problem := unstorable_in(metadata):
            raise InvalidJob("metadata", problem)


Store = Callable[[Part], None]
"""Stores a part. Raises IdempotencyConflict, Backpressure."""


def upload(
    batch: Batch,
    lines: Iterable[bytes],
    options: Mapping[str, Any],
    store: Store,
    *,
    waits: bool,
) -> None:
    """Store the lines that the batch does not have yet.

    Raises InvalidJob if the lines that it has differ, and Backpressure if too much is queued,
    unless `waits` is set (and in any case if they can never fit). What was stored is kept, and the
    same upload continues from there.
    """
    # Some numbers that SearchOptions accepts do not exist in JSON.
    digest = hashlib.sha256(json.dumps(dict(options), sort_keys=True, default=float).encode())
    number, part = 0, Part(batch.lines, batch.expires_at)
    for number, line in enumerate(lines, start=1):
        require(isinstance(line, bytes), f"line {number}", "bytes", line)
        digest.update(line)
        if number < batch.lines:
            continue
        if number == batch.lines:
            if digest.hexdigest() != batch.digest:
                raise _changed(batch)
            continue
        if batch.completed_at is not None:
            raise _changed(batch)
        part.add(number, line, options, digest.hexdigest())
        if part.full:
            _store(part, store, waits)
            part = Part(number, batch.expires_at)
    if number < batch.lines:
        raise _changed(batch)
    if batch.completed_at is None:
        part.digest, part.complete = digest.hexdigest(), True
        _store(part, store, waits)


def _store(part: Part, store: Store, waits: bool) -> None:
    # One at a time: the first lines may leave no room for the last, which then wait.
    waits_whole = waits and not (part.one_by_one and part.lines > 1)
    try:
        when_room(lambda: store(part), waits=waits_whole)
    except IdempotencyConflict:
        _store(replace(part, one_by_one=True), store, waits)
    except Backpressure as full:
        if part.lines < 2 or (full.retryable and not part.one_by_one):
            raise
        # More than may ever be queued at once: smaller parts fit.
        for half in part.halves():
            _store(half, store, waits)


def when_room(
    store: Callable[[], T], *, waits: bool, sleep: Callable[[float], None] = time.sleep
) -> T:
    """What `store` returns; with `waits` it is called again while too much is queued.

    Raises Backpressure without `waits`, or if the part can never fit.
    """
    logged = False
    while True:
        try:
            return store()
        except Backpressure as full:
            if not waits or full.retry_after_s is None:
                raise
            if not logged:
                log.warning("%s; waiting", full)
                logged = True
            sleep(full.retry_after_s)


def _changed(batch: Batch) -> InvalidJob:
    return InvalidJob(
        "file",
        f"not what was uploaded as batch {batch.id} so far ({batch.lines:,} lines): the file or "
        "the search options have changed. Submit the same again to resume, or start a new batch",
    )
