"""Jobs from plain data and JSON lines, and the hash that tells two payloads apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from marco_search.errors import InvalidJob
from marco_search.jobs.requests import JOB_MODELS, Job
from marco_search.jobs.text import decode_utf8, hint, shortened, shown

# They name a payload and are no part of it.
_NOT_PAYLOAD = {"tenant", "idempotency_key"}


def parse_job(data: Mapping[str, Any]) -> Job:
    """The job that `data` describes; `data["kind"]` says which.

    Raises InvalidJob naming the field and the reason.
    """
    if not isinstance(data, Mapping):
        raise InvalidJob("job", f"must be an object of names and values, not {shown(data)}")
    known = ", ".join(JOB_MODELS)
    if "kind" not in data:
        raise InvalidJob("kind", f"missing; use one of: {known}")
    kind = data["kind"]
    model = JOB_MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise InvalidJob(
            "kind", f"unknown kind {shown(kind)}; use one of: {known}{hint(kind, JOB_MODELS)}"
        )
    return model.model_validate(dict(data))


def job_from_json_line(line: bytes | str, line_number: int) -> Job:
    """The job in one line of a JSON Lines file. `line_number` counts from 1.

    Raises InvalidJob whose field begins with "line N".
    """
    place = f"line {line_number}"
    text = decode_utf8(line, place) if isinstance(line, bytes) else line.removeprefix("\ufeff")
    try:
        data = json.loads(text, object_pairs_hook=_once_each, parse_constant=_refuse_constant)
    except InvalidJob as error:
        raise InvalidJob(f"{place}, {error.field}", error.reason) from None
    except json.JSONDecodeError as error:
        reason = f"not valid JSON at column {error.colno}: {error.msg}"
        raise InvalidJob(place, f"{reason}; write one object on each line") from None
    except (ValueError, RecursionError):
        # Numbers of thousands of digits and brackets nested without end.
        raise InvalidJob(place, "not usable JSON: a number or a nesting is too large") from None
    if not isinstance(data, dict):
        raise InvalidJob(place, f"must be a JSON object, not {shown(data)}")
    try:
        return parse_job(data)
    except InvalidJob as error:
        raise InvalidJob(f"{place}, {error.field}", error.reason) from None


def payload_hash(job: Job) -> str:
    """SHA-256 (hex) of the job's canonical JSON.

    Tenant and idempotency key are left out: they name the payload. Fields at their default
    are left out too, so that a field added later does not change the hash of old payloads.
    """
    payload = job.model_dump(mode="json", exclude=_NOT_PAYLOAD, exclude_defaults=True)
    payload["kind"] = job.kind
    # An `options` that was spelt out with defaults is the same as none.
    if not payload.get("options"):
        payload.pop("options", None)
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name in data:
            raise InvalidJob(shortened(name), "given twice in one object")
        data[name] = value
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidJob("job", f"{name} is not valid JSON")
