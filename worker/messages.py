"""What may be read from the queue: a permit to claim one job, and nothing else.

Whoever reaches Redis can put anything there: another program, an older version, a person. Each
message is checked as bytes, before Celery sees it, and made anew from the one thing that counts
in it; so no header or body of another's making gets any further.
"""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from pydantic import Base64Bytes, BaseModel, Field, TypeAdapter, ValidationError

from marco_search.broker import TASK

LARGEST = 1 << 16  # bytes; ours have about 700


class _Headers(BaseModel):
    task: Literal["marco.run_job"]


class _Properties(BaseModel):
    body_encoding: Literal["base64"]


class _Message(BaseModel):
    headers: _Headers
    properties: _Properties
    body: Base64Bytes


_Body = TypeAdapter(tuple[Annotated[list[UUID], Field(min_length=1, max_length=1)], Any, Any])


def read(raw: bytes) -> UUID:
    """The job that a message names. Raises ValueError, saying why it can't be read."""
    if len(raw) > LARGEST:
        raise ValueError(f"it has {len(raw):,} bytes")
    try:
        message = _Message.model_validate_json(raw)
        (job_id,), _, _ = _Body.validate_json(message.body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in ("message", *first["loc"][:4]))
        raise ValueError(f"{place}: {first['msg']}"[:200]) from None
    return job_id


def made(job_id: UUID, queue: str) -> bytes:
    """The message that a worker goes on with."""
    body = b64encode(json.dumps([[str(job_id)], {}, {}]).encode()).decode()
    delivery = {"exchange": "", "routing_key": queue}
    return json.dumps(
        {
            "body": body,
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": TASK, "id": str(job_id)},
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
                "delivery_info": delivery,
            },
        }
    ).encode()
