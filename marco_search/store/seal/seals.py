"""Seals jobs that end: hashes their rows, keeps the hashes, and chains the root.

In the transaction that ends the job, after its last row is written. The rows are read back
from Postgres, so what is hashed is what is stored. Links are appended one at a time, under
a lock that is taken last and held until the commit: whoever holds it waits for no row, so
there is no deadlock. It is the lock of a table, since anybody who may connect can take an
advisory lock, and hold it: this one takes the right to change the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from psycopg.rows import class_row
from psycopg.sql import SQL

from marco_search.audit.chain import ARCHIVE, JOB, Link, LinkKind, follow
from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.audit.proofs import Proof, prove
from marco_search.store.db import Conn
from marco_search.store.trail import rows

# Whoever stands still with the lock is ended after 5 s: stopped between two statements or in
# the middle of one. The second limit counts from its last setting.
_LOCK = """
    SET LOCAL idle_in_transaction_session_timeout = '5s'; SET LOCAL transaction_timeout = 0;
    LOCK TABLE public.chain_lock IN SHARE ROW EXCLUSIVE MODE;
    SET LOCAL transaction_timeout = {}
"""
_LONGEST_MS = 5000
_A_LINK_MS, _ROWS_A_MS = 5, 100  # more than it takes on a busy machine
_AT_ONCE = 200  # jobs whose rows are held in memory together

LINK_COLUMNS = "seq, kind, job_id, root, previous, head, at, format"

Entry = tuple[LinkKind, UUID | None, bytes]
"""What a link is made of: its kind, the job if there is one, and the root."""


def seal(conn: Conn, job_ids: Iterable[UUID]) -> list[Link]:
    """Chain those of the jobs that are in a final state, in order; their new links.

    Call it once for all jobs that a transaction ends, as the last thing in it.
    """
    wanted = list(dict.fromkeys(job_ids))
    proofs: list[tuple[UUID, Proof]] = []
    kinds = FORMATS[NEWEST].kinds
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        found = rows.of_jobs(conn, part, kinds, ended=True)
        proofs += [(i, prove(found[i], kinds)) for i in part if i in found]
    if not proofs:
        return []
    # All that takes time is done before the lock.
    entries: list[Entry] = [(JOB, job_id, proof.root) for job_id, proof in proofs]
    columns = [
        [*(list(proof.hashes[k]) for k in keyed_kinds()), proof.packed()] for _, proof in proofs
    ]
    count = sum(len(keys) for *keyed, _ in columns for keys in keyed)
    links = append(conn, entries, also_rows=count)
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO public.proofs (seq, attempts, events, nodes, rollouts, answers, hashes)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [[link.seq, *values] for link, values in zip(links, columns, strict=True)],
        )
    return links


def seal_archive(conn: Conn, root: bytes) -> Link:
    """Chain the hash of an archive's list of files."""
    return append(conn, [(ARCHIVE, None, root)])[0]


def append(conn: Conn, entries: Sequence[Entry], *, also_rows: int = 0) -> list[Link]:
    """Append a link for each (kind, job, root). Others wait until this transaction ends.

    `also_rows`: how many hashed rows the transaction will write keys of.
    """
    longest = _LONGEST_MS + _A_LINK_MS * len(entries) + also_rows // _ROWS_A_MS
    conn.execute(SQL(_LOCK).format(longest))
    # A statement of its own: it must see what the lock's last holder committed.
    with conn.cursor(row_factory=class_row(Link)) as cursor:
        last = cursor.execute(
            f"SELECT {LINK_COLUMNS} FROM public.chain ORDER BY seq DESC LIMIT 1"  # noqa: S608
        ).fetchone()
    now = conn.execute("SELECT clock_timestamp()").fetchone()
    assert now is not None
    assert last is not None, "the migration writes the first link"
    links = []
    for kind, job_id, root in entries:
        last = follow(last, kind=kind, job_id=job_id, root=root, at=now[0], format=NEWEST)
        links.append(last)
    with conn.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO public.chain ({LINK_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",  # noqa: S608
            [[getattr(x, name) for name in LINK_COLUMNS.split(", ")] for x in links],
        )
    return links


def keyed_kinds() -> list[str]:
    """The kinds of which a job has several rows: each has a column of keys in `proofs`."""
    return [name for name, kind in FORMATS[NEWEST].kinds.items() if kind.key]
