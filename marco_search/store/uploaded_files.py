"""Files that clients of the HTTP API uploaded: in Postgres, in parts of a MiB each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO
from uuid import UUID

from marco_search.errors import FileNotFound, InputError
from marco_search.store.db import Conn, Database, select
from marco_search.store.queue.jobs import new_job_id

_PART = 2**20
# Batches that were not uploaded to the end read their file again.
_UNUSED = """NOT EXISTS (SELECT FROM batches AS b WHERE b.file_id = files.id
    AND b.completed_at IS NULL AND b.cancelled_at IS NULL)"""

_ALIVE = f"(expires_at IS NULL OR expires_at >= now() OR NOT {_UNUSED})"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedFile:
    """What is known of a file."""

    id: UUID
    tenant: str
    name: str
    bytes: int
    created_at: datetime
    expires_at: datetime | None  #: when it is deleted


def store(
    conn: Conn, data: BinaryIO, *, tenant: str, name: str, expires_in_s: float, most: int
) -> UploadedFile:
    """Store a file.

    Raises InputError if the tenant's files would have more than `most` bytes; the transaction
    must then be rolled back.
    """
    file_id = new_job_id()
    conn.execute(
        "INSERT INTO files (id, tenant, name, bytes, expires_at)"
        " VALUES (%s, %s, %s, 0, now() + make_interval(secs => %s))",
        [file_id, tenant, name, expires_in_s],
    )
    size, number = 0, 0
    while part := data.read(_PART):
        conn.execute("INSERT INTO file_parts VALUES (%s, %s, %s)", [file_id, number, part])
        size, number = size + len(part), number + 1
    conn.execute("UPDATE files SET bytes = %s WHERE id = %s", [size, file_id])
    # One upload of a tenant's at a time from here on: two that both fit alone may not together.
    conn.execute(
        "INSERT INTO tenants (name) VALUES (%s) ON CONFLICT (name) DO UPDATE"
        " SET name = excluded.name",
        [tenant],
    )
    if (whole := held(conn, tenant=tenant)) > most:
        raise too_much(tenant, whole, most)
    return find(conn, file_id, tenant=tenant)


def held(conn: Conn, *, tenant: str) -> int:
    """Bytes of all files of a tenant."""
    query = "SELECT coalesce(sum(bytes), 0)::bigint FROM files WHERE tenant = %s"
    row = conn.execute(query, [tenant]).fetchone()
    assert row is not None
    return int(row[0])


def too_much(tenant: str, whole: int, most: int) -> InputError:
    """What is raised when a tenant's files would have more bytes than they may."""
    return InputError(
        f"tenant {tenant} may have files of {most:,} bytes, and would have {whole:,}: "
        "delete some, or raise MARCO_API_FILES_MB"
    )


def find(conn: Conn, file_id: UUID, *, tenant: str) -> UploadedFile:
    """A tenant's file. Raises FileNotFound."""
    found = select(
        conn, UploadedFile, f"files WHERE id = %s AND tenant = %s AND {_ALIVE}", [file_id, tenant]
    )
    if not found:
        raise FileNotFound(f"no file file-{file_id.hex}")
    return found[0]


def kept(conn: Conn, file_id: UUID, *, tenant: str) -> UploadedFile:
    """As `find`; until this transaction ends nobody deletes it, so that a batch may be begun."""
    conn.execute("SELECT FROM files WHERE id = %s FOR KEY SHARE", [file_id])
    return find(conn, file_id, tenant=tenant)


def page(
    conn: Conn, *, tenant: str, after: UUID | None, newest_first: bool, limit: int
) -> list[UploadedFile]:
    """The files of a tenant that come after one, in order of their upload."""
    sign, way = ("<", "DESC") if newest_first else (">", "ASC")
    where = f"""files WHERE tenant = %(tenant)s AND {_ALIVE}
        AND (%(after)s::uuid IS NULL OR id {sign} %(after)s) ORDER BY id {way} LIMIT %(limit)s"""
    return select(conn, UploadedFile, where, {"tenant": tenant, "after": after, "limit": limit})


def delete(conn: Conn, file_id: UUID, *, tenant: str) -> None:
    """Delete a tenant's file. Raises FileNotFound, InputError while a batch still reads it."""
    find(conn, file_id, tenant=tenant)
    # By itself: one statement would not see the batch that was begun while it waited.
    conn.execute("SELECT FROM files WHERE id = %s FOR UPDATE", [file_id])
    if not _delete(conn, file_id):
        raise InputError(f"a batch is being made from file-{file_id.hex}: wait, or cancel it")


def delete_expired(conn: Conn) -> int:
    """Delete a file whose time is over and that no batch still reads; 0: there is none.

    One: a large file takes a second, and a transaction must not take many.
    """
    query = f"""SELECT id FROM files WHERE expires_at < now() AND {_UNUSED}
        LIMIT 1 FOR UPDATE SKIP LOCKED"""  # noqa: S608  # constants
    found = conn.execute(query.encode()).fetchone()
    return 0 if found is None else _delete(conn, found[0])


def _delete(conn: Conn, file_id: UUID) -> int:
    """Delete a file that is locked, unless a batch reads it."""
    query = f"DELETE FROM files WHERE id = %s AND {_UNUSED}"  # noqa: S608  # constants
    return conn.execute(query.encode(), [file_id]).rowcount


def content(database: Database, file: UploadedFile) -> Iterator[bytes]:
    """A file's parts, each read in its own transaction. May raise FileNotFound half-way."""
    left, number = file.bytes, 0
    while left:
        with database.transaction() as conn:
            row = conn.execute(
                "SELECT data FROM file_parts WHERE file_id = %s AND number = %s", [file.id, number]
            ).fetchone()
        if row is None:
            raise FileNotFound(f"no file file-{file.id.hex} any more")
        yield row[0]
        left, number = left - len(row[0]), number + 1
