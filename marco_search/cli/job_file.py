"""Jobs from a JSON Lines file: all of them, or every line that is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from marco_search.errors import InputError, InvalidBatch, InvalidJob
from marco_search.jobs import Job, SearchOptions
from marco_search.kinds import job_from_json_line


def read_jobs(path: str, options: dict[str, Any] | None = None) -> list[Job]:
    """The jobs in a file, in order; "-" is standard input. Blank lines are skipped.

    `options` fill in what a line's own options leave open. Raises InvalidBatch naming every
    bad line with its number, InputError if the file can't be read or holds no job.
    """
    source = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror or error}") from None
    if wrong := _another_format(data):
        raise InputError(f"{source}: {wrong}")
    jobs = parse_lines(data.split(b"\n"), source, options or {})
    if not jobs:
        raise InputError(f"{source}: no job in it; write one JSON object on each line")
    return jobs


def _another_format(data: bytes) -> str | None:
    """What the file is if it is not JSON Lines at all, and what to do; None: it may be."""
    if data.startswith(b"\x1f\x8b"):
        return "compressed by gzip: `gzip -dc FILE | marco submit -`"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16: save the file as UTF-8"
    begin = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:2].rstrip()
    if begin.startswith(b"["):
        return "a JSON array: `jq -c '.[]' FILE | marco submit -` writes an object on each line"
    if begin == b"{" and not data.split(b"\n", 1)[0].rstrip().endswith(b"}"):
        return "an object over several lines: `jq -c . FILE | marco submit -` writes one on each"
    return None


def parse_lines(lines: Iterable[bytes], source: str, options: dict[str, Any]) -> list[Job]:
    """The jobs in these lines. Raises InvalidBatch if any line is wrong."""
    SearchOptions(**options)  # raises InvalidJob once, not for every line
    jobs: list[Job] = []
    errors: list[InvalidJob] = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                jobs.append(_with_options(job_from_json_line(line, number), options))
        except InvalidJob as error:
            errors.append(error)
    if errors:
        raise InvalidBatch(source, errors)
    return jobs


def _with_options(job: Job, options: dict[str, Any]) -> Job:
    """The job with `options` where its own say nothing."""
    own = {name: getattr(job.options, name) for name in job.options.model_fields_set}
    return job.model_copy(update={"options": SearchOptions(**{**options, **own})})
