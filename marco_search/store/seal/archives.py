"""Months of trees that can be archived, and those that are."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from psycopg import errors
from psycopg.sql import SQL, Identifier
from pydantic import BaseModel, Field, StrictInt

from marco_search.audit.chain import ARCHIVE
from marco_search.audit.findings import Finding
from marco_search.audit.verify import Archived
from marco_search.errors import ArchiveRefused
from marco_search.store.db import Conn, insert
from marco_search.store.seal import seals
from marco_search.store.trail import partitions

FORMAT = 3
"""Of the manifest and files that are written now: since 2, links have a column for their format,
since 3 for the salt of their job and what is left of one that was redacted."""
TABLES = ("nodes", "rollouts", "answers")
"""Tables whose partitions are dropped. Jobs, attempts and the log stay, as they are small."""

_NAME = re.compile(r"nodes_(\d{4})_(\d{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A month that has partitions. Its jobs have first <= id < before."""

    name: str  #: such as 2026-08
    first: UUID  #: the lowest id that a job of the month can have
    before: UUID  #: the lowest id of the next month
    end: datetime  #: the beginning of the next month, UTC


def months(conn: Conn, until: datetime) -> list[Month]:
    """The months with partitions that are over at `until`, oldest first.

    Raises ArchiveRefused for a time to come, by the database's clock: jobs would be submitted to
    a month that is archived.
    """
    if conn.execute("SELECT %s > now()", [until]).fetchone() == (True,):
        raise ArchiveRefused(f"--before {until:%Y-%m-%d} is in the future: months must be over")
    rows = conn.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) ORDER BY relname",
        [partitions.SCHEMA],
    ).fetchall()
    found = []
    for match in filter(None, (_NAME.fullmatch(name) for (name,) in rows)):
        year, month = int(match[1]), int(match[2])
        start = datetime(year, month, 1, tzinfo=UTC)
        end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        if end <= until:
            first, before = partitions.lower_bound(start), partitions.lower_bound(end)
            name = f"{year}-{month:02}"
            found.append(Month(name=name, first=first, before=before, end=end))
    return found


def require_ended(conn: Conn, month: Month) -> None:
    """Raises ArchiveRefused if a job of the month has not ended."""
    rows = conn.execute(
        "SELECT id, state, count(*) OVER () FROM public.jobs WHERE id >= %s AND id < %s"
        " AND finished_at IS NULL ORDER BY id LIMIT 1",
        [month.first, month.before],
    ).fetchone()
    if rows is not None:
        raise ArchiveRefused(
            f"{month.name}: not all jobs have ended ({rows[2]} left, the first is {rows[0]}, "
            f"{rows[1]}); wait for them or cancel them"
        )


def require_there(conn: Conn, month: Month) -> None:
    """Raises ArchiveRefused if another command has archived the month."""
    if month not in months(conn, month.end):
        raise archived_meanwhile(month)


def archived_meanwhile(month: Month) -> ArchiveRefused:
    """The refusal of a month that another command has archived."""
    return ArchiveRefused(f"{month.name}: another command has archived it meanwhile")


def counts(conn: Conn, month: Month) -> dict[str, int]:
    """How many jobs the month has, and nodes of their trees."""
    row = conn.execute(
        "SELECT count(*), coalesce(sum(nodes), 0)::bigint FROM public.jobs"
        " WHERE id >= %s AND id < %s",
        [month.first, month.before],
    ).fetchone()
    return dict(zip(("jobs", "nodes"), row or (0, 0), strict=True))


def drop(conn: Conn, month: Month, manifest: str) -> int:
    """Chain the archive's list, log it for each job, drop the partitions; the link's seq.

    Raises ArchiveRefused if a job of the month runs again or has ended once more since the files
    were written, or this user may not drop them.
    """
    # No job can be requeued or redacted until this is committed.
    conn.execute(
        "SELECT FROM public.jobs WHERE id >= %s AND id < %s ORDER BY id FOR NO KEY UPDATE",
        [month.first, month.before],
    )
    require_ended(conn, month)
    written = parse(manifest).files["link.parquet"].rows
    links = conn.execute(
        "SELECT count(*) FROM public.chain WHERE job_id >= %s AND job_id < %s",
        [month.first, month.before],
    ).fetchone()
    if links != (written,):
        raise ArchiveRefused(
            f"{month.name}: a job ended again or was redacted while the files were written; "
            "nothing was dropped: run it again"
        )
    try:
        for table in TABLES:
            name = f"{table}_{month.name.replace('-', '_')}"
            conn.execute(SQL("DROP TABLE {}").format(Identifier(partitions.SCHEMA, name)))
    except errors.UndefinedTable:
        raise archived_meanwhile(month) from None
    except errors.InsufficientPrivilege:
        raise ArchiveRefused(
            "only the owner of the tables may drop a month: use the owner's DATABASE_URL"
        ) from None
    conn.execute(
        "INSERT INTO public.audit_log (job_id, event, detail)"
        " SELECT id, 'archived', jsonb_build_object('month', %s::text, 'manifest', %s::text)"
        " FROM public.jobs WHERE id >= %s AND id < %s ORDER BY id",
        [month.name, root_of(manifest).hex(), month.first, month.before],
    )
    return chain(conn, manifest)


def chain(conn: Conn, manifest: str) -> int:
    """Chain an archive's list; the link's seq."""
    listed = parse(manifest)
    link = seals.append(conn, [(ARCHIVE, None, root_of(manifest))])[0]
    row = {"seq": link.seq, "first": listed.first, "before": listed.before, "files": manifest}
    insert(conn, "archives", [row])
    return link.seq


def root_of(manifest: str) -> bytes:
    """An archive in the chain."""
    return hashlib.sha256(manifest.encode()).digest()


def check(conn: Conn) -> list[Finding]:
    """Archives whose list, or the range of jobs beside it, is not the one that was chained."""
    found = []
    for seq, root, files, first, before in conn.execute(
        "SELECT c.seq, c.root, a.files, a.first, a.before FROM public.chain AS c"
        " LEFT JOIN public.archives AS a USING (seq)"
        " WHERE c.kind = 'archive' OR a.seq IS NOT NULL ORDER BY c.seq"
    ):
        if files is None:
            wrong = ("the list is gone", "a row", "none")
        elif root_of(files) != root:
            wrong = ("the list was changed", root.hex()[:16], root_of(files).hex()[:16])
        else:
            chained = parse(files)
            wanted, stored = f"{chained.first} to {chained.before}", f"{first} to {before}"
            if wanted == stored:
                continue
            wrong = ("the range of its jobs was changed", wanted, stored)
        found.append(Finding("archives", f"seq {seq}", *wrong))
    return found


def listed(conn: Conn) -> list[Archived]:
    """All archives, in the order in which they were chained."""
    found = []
    for first, before, files, root, at in conn.execute(
        "SELECT first, before, files, root, at FROM public.archives"  # noqa: S608  # constants
        f" JOIN {seals.LINKS} USING (seq) ORDER BY seq".encode()
    ):
        try:
            month = parse(files).name
        except ArchiveRefused:
            month = ""  # the list was changed, which is a finding of its own
        found.append(Archived(first=first, before=before, month=month, root=root, at=at))
    return found


def chained_root(conn: Conn, manifest: str) -> int | None:
    """The seq of the link that holds this list; None: the chain knows no such archive."""
    row = conn.execute(
        "SELECT seq FROM public.chain WHERE kind = 'archive' AND root = %s", [root_of(manifest)]
    ).fetchone()
    return row[0] if row else None


class File(BaseModel):
    """A file of an archive."""

    rows: StrictInt
    sha256: str


class Manifest(BaseModel):
    """The list of an archive, as far as it is read."""

    format: int = Field(ge=1)
    database: str | None = None  #: the head of its chain's first link
    name: str  #: the month
    first: UUID
    before: UUID
    files: dict[str, File]


def parse(manifest: str) -> Manifest:
    """The manifest. Raises ArchiveRefused if `marco archive` did not write it."""
    try:
        data: dict[str, Any] = json.loads(manifest)
        number = str(data["format"]).removeprefix("marco-archive ")
        if number.isdecimal() and int(number) > FORMAT:
            raise ArchiveRefused(
                f"manifest.json: format {number}, of a newer marco-search: check it with that"
            )
        return Manifest(**data | {"format": number})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ArchiveRefused(f"manifest.json: not an archive's list ({reason})") from None
