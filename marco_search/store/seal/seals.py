"""Seals jobs that end: hashes their rows, keeps the hashes, and chains the root; anchors.

In the transaction that ends the job, after its last row is written. The rows are read back
from Postgres, so what is hashed is what is stored. Links are appended one at a time, under
a lock that is taken last and held until the commit: its holder waits for no row, so there is
no deadlock. It is the lock of a table: an advisory lock could be taken, and held, by any login
that may connect; this one takes the right to change the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg.rows import dict_row

from marco_search.audit.chain import JOB, Link, LinkKind, follow
from marco_search.audit.formats import FORMATS, KEYED, NEWEST
from marco_search.audit.proofs import HASH_BYTES, NO_SALT, Proof, prove
from marco_search.errors import InvalidAnchor
from marco_search.store.db import Conn, execute_for_each, insertion, select
from marco_search.store.trail import rows

if TYPE_CHECKING:
    from marco_search.audit.anchors import Anchor
    from marco_search.audit.findings import Finding

# A session that stalls with the lock is ended after 5 s, between two statements or within one.
# The second limit counts from its last setting, which is when the lock is held.
_LOCK = (
    "SELECT set_config('idle_in_transaction_session_timeout', '5s', true),"
    " set_config('transaction_timeout', '0', true)",
    "LOCK TABLE public.chain_lock IN SHARE ROW EXCLUSIVE MODE",
)
_LONGEST_MS = 5000
_A_LINK_MS, _ROWS_A_MS = 5, 100  # more than it takes on a busy machine
_AT_ONCE = 200  # jobs whose rows are held in memory together
_COLUMNS = tuple(field.name for field in fields(Link))
_LAST_SEQ = 2**62  # what is beyond is no bigint

NEAREST = "greatest(least({}, '9999-12-31Z'), '0001-01-01Z')"
"""A time to be read: of one that Python lacks the nearest."""
_LINKS = "SELECT seq, kind, job_id, root, previous, head, format, {} AS at FROM public.chain"
LINKS = f"({_LINKS.format(NEAREST.format('at'))}) AS links"
"""The chain, to be read: the head does not match the nearest of a time that Python lacks."""

Entry = tuple[LinkKind, UUID | None, bytes]
"""What a link is made of: its kind, the job if there is one, and the root."""


def seal(conn: Conn, job_ids: Iterable[UUID], *, as_kind: LinkKind = JOB) -> list[Link]:
    """Chain those of the jobs that are in a final state, in order; their new links.

    Call it once for all jobs that a transaction ends, as the last thing in it; `as_kind`
    REDACTION once more for those whose texts and salt are gone.
    """
    wanted = list(dict.fromkeys(job_ids))
    proofs: list[tuple[UUID, Proof]] = []
    kinds = FORMATS[NEWEST].kinds
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        found, salts = rows.read(conn, kinds, rows.of_jobs(part), ended=True)
        proofs += [(i, prove(found[i], kinds, salts.get(i, NO_SALT))) for i in part if i in found]
    if not proofs:
        return []
    # All that takes time is done before the lock.
    entries: list[Entry] = [(as_kind, job_id, proof.root) for job_id, proof in proofs]
    kept = [
        {f"{kind}s": list(proof.hashes[kind]) for kind in KEYED} | {"hashes": proof.packed()}
        for _, proof in proofs
    ]
    with conn.pipeline():
        return append(conn, entries, kept)


def link_at(conn: Conn, seq: int | None = None) -> Link | None:
    """A link of the chain; the last one without a number."""
    source = f"""{LINKS} WHERE %(seq)s::bigint IS NULL OR seq = %(seq)s
        ORDER BY seq DESC LIMIT 1"""
    return next(iter(select(conn, Link, source, {"seq": seq})), None)


def append(
    conn: Conn, entries: Sequence[Entry], proofs: Sequence[dict[str, Any]] = ()
) -> list[Link]:
    """Append a link for each (kind, job, root), with its row of `proofs`, if it has one.

    Others wait until this transaction ends.
    """
    hashes = sum(len(proof["hashes"]) // HASH_BYTES for proof in proofs)
    longest = _LONGEST_MS + _A_LINK_MS * len(entries) + hashes // _ROWS_A_MS
    for step in _LOCK:
        conn.execute(step)
    # A statement of its own: it must see what the lock's last holder committed.
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            "SELECT *, clock_timestamp() AS now,"
            " set_config('transaction_timeout', %s::text, true) AS longest"
            " FROM public.chain ORDER BY seq DESC LIMIT 1",
            [longest],
        ).fetchone()
    assert row is not None, "the migration writes the first link"
    now, _ = row.pop("now"), row.pop("longest")
    last = Link(**row)
    links = []
    for kind, job_id, root in entries:
        last = follow(last, kind=kind, job_id=job_id, root=root, at=now, format=NEWEST)
        links.append(last)
    query = insertion("chain", *_COLUMNS)
    given = [{name: getattr(link, name) for name in _COLUMNS} for link in links]
    if proofs:  # in one statement
        query = b"WITH linked AS (%b) %b" % (query, insertion("proofs", "seq", *proofs[0]))
        given = [link | proof for link, proof in zip(given, proofs, strict=True)]
    execute_for_each(conn, query, given)
    return links


def anchor(conn: Conn, *, key: Path | None = None) -> Anchor:
    """An anchor of the chain as it stands, signed if the file of a key is given.

    Raises InvalidAnchor for a key that can't be used, or a chain that was emptied.
    """
    # It loads cryptography, and each process that ends jobs loads this module.
    from marco_search.audit import anchors

    first, last = link_at(conn, 0), link_at(conn)
    if first is None or last is None:
        raise InvalidAnchor("the chain is empty or has lost its first link: run `marco verify`")
    return anchors.make(first, last, jobs=_jobs(conn, last.seq), key=key)


def check_anchor(conn: Conn, anchor: Anchor) -> list[Finding]:
    """What the stored chain says against an anchor."""
    from marco_search.audit import anchors

    seq = min(anchor.seq, _LAST_SEQ)
    first, link, after, last = (link_at(conn, at) for at in (0, seq, seq + 1, None))
    jobs = _jobs(conn, seq)
    return list(anchors.check_anchor(anchor, first, link, last, jobs=jobs, after=after))


def _jobs(conn: Conn, seq: int) -> int:
    """Jobs chained up to this link."""
    row = conn.execute(
        "SELECT count(DISTINCT job_id) FROM public.chain WHERE seq <= %s", [seq]
    ).fetchone()
    return row[0] if row else 0
