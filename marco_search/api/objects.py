"""What answers in OpenAI's shape are made of: ids, times, pages of a list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from marco_search.errors import FileNotFound, JobNotFound


def uploaded_id(file_id: str) -> UUID:
    """The id of an uploaded file. Raises FileNotFound for what is none."""
    if not re.fullmatch("file-[0-9a-f]{32}", file_id):
        raise FileNotFound(f"no file {file_id[:60]!r}; an id looks like file-{UUID(int=0).hex}")
    return UUID(file_id.removeprefix("file-"))


def results_id(file_id: str) -> tuple[UUID, bool] | None:
    """The batch whose results a file has, and whether it is that of the errors."""
    found = re.fullmatch("file-(output|error)-([0-9a-f]{32})", file_id)
    return None if found is None else (UUID(found[2]), found[1] == "error")


def batch_uuid(batch_id: str) -> UUID:
    """The id of a batch. Raises JobNotFound for what is none."""
    try:
        return UUID(batch_id.removeprefix("batch_"))
    except ValueError:
        raise JobNotFound(
            f"no batch {batch_id[:60]!r}; an id looks like batch_{UUID(int=0).hex}"
        ) from None


def unix(moment: datetime | None) -> int | None:
    """A time in seconds since 1970."""
    return None if moment is None else int(moment.timestamp())


def page(found: Sequence[dict[str, Any]], limit: int, name: str = "id") -> dict[str, Any]:
    """A page of `limit` of those found, one more if there are more; their ids are at `name`."""
    data = found[:limit]
    ids = {"first_id": data[0][name], "last_id": data[-1][name]} if data else {}
    return {"object": "list", "data": data, "has_more": len(found) > limit} | ids
