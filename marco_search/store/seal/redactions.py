"""Redaction: replaces the texts of a job that has ended by salted hashes; all else stays proved.

One transaction per job: verify it, log the event, store the commitments to its texts, replace the
texts, destroy the salt, seal what is left. Hashes that were made without a salt (formats 1 to 3)
would allow testing guesses of a text, so they are erased with the texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from psycopg import errors
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier, Placeholder
from psycopg.types.json import Jsonb

from marco_search import schema
from marco_search.audit import redaction
from marco_search.audit.chain import REDACTION, Link
from marco_search.audit.formats import COMMITS, FORMATS
from marco_search.audit.proofs import Kinds, Proof, Rows, commitments
from marco_search.errors import FileNotFound, RedactionRefused, RightsMissing
from marco_search.store import uploaded_files
from marco_search.store.db import Conn, allow, insert
from marco_search.store.queue.states import not_found
from marco_search.store.seal import seals, verification
from marco_search.store.trail import rows

Stored = Callable[[Kinds], Rows]
"""A job's rows, as kinds of a format have them."""
_KEYS = {table: keys for _, table, keys in schema.leaves()}
"""Tables with texts, and the columns that name a row."""
REDACTED = "redacted"
"""Why a line was refused, once its texts are erased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to redact: everything that matches all conditions."""

    tenant: str | None = None
    batch_id: UUID | None = None
    custom_id: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)  #: values as text


_IN = "(%(tenant)s::text IS NULL OR tenant = %(tenant)s)"
_BATCH = "(%(batch_id)s::uuid IS NULL OR {} = %(batch_id)s)"
_NAMED = "(%(custom_id)s::text IS NULL OR custom_id = %(custom_id)s)"


def chosen(conn: Conn, choice: Choice) -> list[UUID]:
    """The jobs that are not redacted yet, including restarted ones; oldest first."""
    metadata = choice.metadata
    return [
        row[0]
        for row in conn.execute(
            f"SELECT id FROM public.jobs WHERE {_IN} AND {_BATCH.format('batch_id')} AND {_NAMED}"  # noqa: S608
            " AND redacted_at IS NULL AND NOT EXISTS ("
            " SELECT FROM unnest(%(names)s::text[], %(values)s::text[]) AS w (name, value)"
            " WHERE payload -> 'metadata' ->> w.name IS DISTINCT FROM w.value)"
            " ORDER BY id".encode(),
            asdict(choice) | {"names": list(metadata), "values": list(metadata.values())},
        )
    ]


def erase_lines(conn: Conn, choice: Choice) -> int:
    """Erase the texts of lines that made no job, and of a whole batch what was said of it.

    They are in no proof. Its uploaded file is deleted. Returns how many lines had some. Raises
    RightsMissing, and InputError while the batch is still being made from the file.
    """
    if choice.metadata or not (choice.batch_id or choice.custom_id):
        return 0  # such a line has no metadata
    given = asdict(choice)
    own = f"SELECT id FROM public.batches WHERE {_IN} AND {_BATCH.format('id')}"  # noqa: S608
    with _as_redactor():
        if choice.custom_id is None:
            # The digest is that of the lines: one could be guessed and tried.
            erased = conn.execute(
                "UPDATE public.batches SET metadata = '{}', source = NULL, digest = NULL"  # noqa: S608
                f" WHERE id IN ({own}) RETURNING file_id, tenant".encode(),
                given,
            )
            uploaded = [row for row in erased.fetchall() if row[0] is not None]
            for file_id, tenant in uploaded:
                with suppress(FileNotFound):  # deleted already
                    uploaded_files.delete(conn, file_id, tenant=tenant)
        return conn.execute(
            "UPDATE public.batch_lines SET custom_id = NULL, field = NULL,"  # noqa: S608
            f" reason = CASE WHEN reason IS NOT NULL THEN '{REDACTED}' END"
            f" WHERE batch_id IN ({own}) AND {_NAMED}"
            f" AND (custom_id IS NOT NULL OR reason <> '{REDACTED}')".encode(),
            given,
        ).rowcount


@contextmanager
def _as_redactor() -> Iterator[None]:
    try:
        yield
    except errors.InsufficientPrivilege as error:
        raise RightsMissing(
            f"this login may not redact ({error.diag.message_primary}): set DATABASE_URL to a"
            " member of the role ..._redactor, or to the owner's login (docs/audit.md)"
        ) from None


def redact(
    conn: Conn, job_id: UUID, *, reason: str | None = None, archived: Stored | None = None
) -> Link | None:
    """Replace the texts of a job; its new link. None: it was redacted before.

    To be called in a transaction of its own. `archived`: the rows of one that was archived, from
    files that were verified. Raises JobNotFound, RightsMissing, and
    RedactionRefused for a job that has not ended, was archived, or does not verify.
    """
    allow(conn, None)
    with _as_redactor():
        salt = lock(conn, job_id, archived=archived is not None)
        return None if salt is None else _redact(conn, job_id, salt, reason, archived)


def lock(conn: Conn, job_id: UUID, *, archived: bool) -> bytes | None:
    """The job's salt, with its row locked; None: it was redacted before.

    Raises RedactionRefused for one that has not ended, or was archived and should not have been.
    """
    # By itself: one statement would not see what another transaction did while it waited.
    conn.execute("SELECT FROM public.jobs WHERE id = %s FOR UPDATE", [job_id])
    row = conn.execute(
        "SELECT state, finished_at IS NOT NULL, redacted_at IS NOT NULL, salt,"
        " EXISTS (SELECT FROM public.archives WHERE first <= jobs.id AND jobs.id < before)"
        " FROM public.jobs WHERE id = %s",
        [job_id],
    ).fetchone()
    if row is None:
        raise not_found(job_id)
    state, ended, redacted, salt, moved = row
    if redacted:
        return None
    if not ended:
        raise RedactionRefused(f"job {job_id} is {state}: cancel it first, or wait for its end")
    if moved and not archived:
        raise RedactionRefused(
            f"job {job_id}: its tree is in an archive, which has its texts as well: name the folder"
            " of the archived months with --archive"
        )
    return bytes(salt.bytes)


def committed(link: Link, proof: Proof, stored: Stored, salt: bytes) -> bytes:
    """The commitments of a job's last end, in the order of its proof; empty: it has none."""
    if link.format < COMMITS:
        return b""
    kinds = FORMATS[link.format].kinds
    found = commitments(stored(kinds), kinds, salt).hashes
    return b"".join(found[kind][key] for kind, keys in proof.hashes.items() for key in keys)


def _redact(
    conn: Conn, job_id: UUID, salt: bytes, reason: str | None, archived: Stored | None
) -> Link:
    ends = _verified(conn, job_id)
    link, proof = ends[-1]
    where = rows.of_jobs([job_id])
    stored = archived or (lambda kinds: rows.read(conn, kinds, where)[0][job_id])
    kept = committed(link, proof, stored, salt)
    insert(conn, "redactions", [{"job_id": job_id, "commitments": kept}])
    who = conn.execute("SELECT session_user::text").fetchone()
    detail = {
        "by": who and who[0],
        "root": link.root.hex(),
        "commitments": hashlib.sha256(kept).hexdigest(),
        "reason": reason,
    }
    event = {"job_id": job_id, "event": redaction.EVENT, "detail": Jsonb(detail)}
    insert(conn, "audit_log", [event])
    for table, keys in _KEYS.items():
        _replace(conn, table, keys, job_id, salt)
    conn.execute("UPDATE public.jobs SET salt = NULL, redacted_at = now() WHERE id = %s", [job_id])
    conn.execute("UPDATE public.batch_lines SET custom_id = NULL WHERE known_id = %s", [job_id])
    # The id of a line is a hash of its texts: a text could be guessed and tried.
    conn.execute(
        "UPDATE public.dataset_samples SET sample_id = 'redacted '"
        " || left(encode(sha256(%s || convert_to(sample_id, 'UTF8')), 'hex'), 16)"
        " WHERE job_id = %s",
        [salt, job_id],
    )
    unsalted = [one.seq for one, _ in ends if one.format < COMMITS]
    if unsalted:
        conn.execute("UPDATE public.proofs SET hashes = '' WHERE seq = ANY (%s)", [unsalted])
    return seals.seal(conn, [job_id], as_kind=REDACTION)[0]


def _verified(conn: Conn, job_id: UUID) -> list[tuple[Link, Proof]]:
    """The job's ends, after everything about it has been verified. Raises RedactionRefused."""
    report, sealed = verification.check_one(conn, job_id)
    if report.findings:
        raise RedactionRefused(
            f"job {job_id} does not verify, and redacting it would hide that: {report.findings[0]}"
        )
    return [(one.link, one.proof) for one in sealed if one.proof is not None]


def _replace(conn: Conn, table: str, keys: list[str], job_id: UUID, salt: bytes) -> None:
    """Replace the texts in the job's rows of a table."""
    names = schema.redacted_columns(table)
    parts = {
        "table": Identifier("public", table),
        "names": SQL(", ").join(map(Identifier, (*keys, *names))),
        "job": Identifier(keys[0]),
        "changes": SQL(", ").join(
            SQL("{} = {}").format(Identifier(name), Placeholder(name)) for name in names
        ),
        "row": SQL(" AND ").join(
            SQL("{} = {}").format(Identifier(key), Placeholder(key)) for key in keys
        ),
    }
    with conn.cursor(row_factory=dict_row) as cursor:
        select = SQL("SELECT {names} FROM {table} WHERE {job} = %s").format(**parts)
        found = cursor.execute(select, [job_id]).fetchall()
        update = SQL("UPDATE {table} SET {changes} WHERE {row}").format(**parts)
        changed = [row | row_without_texts(row, salt) for row in found]
        adapted = [
            {k: Jsonb(v) if isinstance(v, dict) else v for k, v in row.items()} for row in changed
        ]
        cursor.executemany(update, adapted)


def row_without_texts(row: dict[str, Any], salt: bytes) -> dict[str, Any]:
    """The texts of a row, replaced."""
    changed = {
        name: redaction.replaced(name, value, salt) for name, value in row.items() if name in _NAMES
    }
    if "token_texts" in changed:
        texts = redaction.replaced_node(row["token_texts"], row["text"], salt)
        changed["token_texts"], changed["text"] = texts
    return changed


_NAMES = {name for table in _KEYS for name in schema.redacted_columns(table)}
