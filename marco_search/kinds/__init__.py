"""Job kinds: what a caller submits, how each asks the model, and how its answer is read.

A kind is one module: its job model, subject, prompt, answer reader and merge rule. It is
registered in `KINDS`, from which parsing, help texts, filters and SQL follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from marco_search.errors import InvalidJob
from marco_search.jobs import Job
from marco_search.jobs.validation import decode_utf8, hint, shortened, shown
from marco_search.kinds import completions
from marco_search.kinds.base import ExtractedAnswer, Kind
from marco_search.kinds.open_ended import OpenEnded, OpenEndedJob
from marco_search.kinds.reasoning import Reasoning, ReasoningJob
from marco_search.kinds.translation import Translation, TranslationJob

KINDS: dict[str, Kind[Any]] = {k.name: k for k in (Reasoning(), Translation(), OpenEnded())}
"""Kind name to kind."""

__all__ = [
    "KINDS",
    "ExtractedAnswer",
    "Kind",
    "OpenEndedJob",
    "ReasoningJob",
    "TranslationJob",
    "checked",
    "job_from_json_line",
    "kind_of",
    "own_fields",
    "parse_job",
    "strict_json",
    "subject_fields",
]


def kind_of(job: Job) -> Kind[Any]:
    """The kind that handles `job`."""
    return KINDS[job.kind]


def subject_fields() -> list[str]:
    """The fields that may hold the caller's own text, each once, for SQL on payloads."""
    return list(dict.fromkeys(kind.model.subject_field for kind in KINDS.values()))


def own_fields(kind: Kind[Any]) -> dict[str, str]:
    """The kind's own fields, without its subject, each with its description."""
    shared = {*Job.model_fields, kind.model.subject_field}
    fields = kind.model.model_fields.items()
    return {name: field.description or "" for name, field in fields if name not in shared}


def parse_job(data: Mapping[str, Any]) -> Job:
    """The job that `data` describes; `data["kind"]` says which.

    Raises InvalidJob naming the field and the reason.
    """
    if not isinstance(data, Mapping):
        raise InvalidJob("job", f"must be an object of names and values, not {shown(data)}")
    known = ", ".join(KINDS)
    if "kind" not in data:
        raise InvalidJob("kind", f"missing; use one of: {known}")
    kind = data["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidJob(
            "kind", f"unknown kind {shown(kind)}; use one of: {known}{hint(kind, KINDS)}"
        )
    job: Job = KINDS[kind].model.model_validate(dict(data))
    return job


def checked(job: Job | Mapping[str, Any]) -> Job:
    """The job as a worker will read it from the database. Raises InvalidJob.

    `model_copy` does not validate its changes, and a field of a new kind may have a type that can't
    be read back from JSON.
    """
    if not isinstance(job, Job):
        job = parse_job(job)
    as_stored = job.model_dump(
        mode="json", exclude_unset=True, warnings=False, fallback=lambda value: None
    )
    return parse_job({"kind": job.kind} | as_stored)


def _subjects() -> dict[str, str]:
    return {name: kind.model.subject_field for name, kind in KINDS.items()}


def parse_completion(body: Mapping[str, Any], **more: Any) -> Job:
    """The job that the body of a chat completion asks for, with `more` fields.

    Raises InvalidJob naming the field of the body, ModelNotFound.
    """
    fields = completions.body_fields(body, _subjects()) | more
    with named_as_asked(body):
        return parse_job(fields)


@contextmanager
def named_as_asked(body: Mapping[str, Any], within: str = "") -> Iterator[None]:
    """An InvalidJob inside the block names the field of the chat completion's body instead."""
    try:
        yield
    except InvalidJob as error:
        field = completions.asked_field(error.field, body, _subjects())
        # The id is the line's, not the body's.
        place = "" if field == "custom_id" else within
        raise InvalidJob(f"{place}{field}", error.reason) from None


def job_from_json_line(line: bytes | str, line_number: int) -> Job:
    """The job in one line of a JSON Lines file, ours or OpenAI's. `line_number` counts from 1.

    Raises InvalidJob whose field begins with "line N".
    """
    place = f"line {line_number}"
    text = decode_utf8(line, place) if isinstance(line, bytes) else line.removeprefix("\ufeff")
    try:
        data = strict_json(text)
        if isinstance(data, dict):
            if "kind" not in data and "body" in data:  # in OpenAI's shape
                fields = completions.job_fields(data, _subjects())
                with named_as_asked(data["body"], "body."):
                    return parse_job(fields)
            return parse_job(data)
    except InvalidJob as error:
        raise InvalidJob(f"{place}, {error.field}", error.reason) from None
    except json.JSONDecodeError as error:
        reason = f"not valid JSON at column {error.colno}: {error.msg}"
        raise InvalidJob(place, f"{reason}; write one object on each line") from None
    except (ValueError, RecursionError):
        # Numbers of thousands of digits and brackets nested without end.
        raise InvalidJob(place, "not usable JSON: a number or a nesting is too large") from None
    raise InvalidJob(place, f"must be a JSON object, not {shown(data)}")


def strict_json(text: str) -> Any:
    """The value of JSON text. Raises InvalidJob for duplicate names, NaN and Infinity."""
    return json.loads(text, object_pairs_hook=_once_each, parse_constant=_refuse_constant)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name in data:
            raise InvalidJob(shortened(name), "given twice in one object")
        data[name] = value
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidJob("job", f"{name} is not valid JSON")
