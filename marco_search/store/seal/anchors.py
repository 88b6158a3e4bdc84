"""Anchors of the chain that is stored (`marco_search.audit.anchors`)."""

from __future__ import annotations

from pathlib import Path

from marco_search.audit import anchors
from marco_search.audit.anchors import Anchor
from marco_search.audit.findings import Finding
from marco_search.errors import InvalidAnchor
from marco_search.store.db import Conn
from marco_search.store.seal.seals import link_at

_LAST_SEQ = 2**62  # what is beyond is no bigint


def take(conn: Conn, *, key: Path | None = None) -> Anchor:
    """An anchor of the chain as it stands, signed if the file of a key is given.

    Raises InvalidAnchor for a key that can't be used, or a chain that was emptied.
    """
    first, last = link_at(conn, 0), link_at(conn)
    if first is None or last is None:
        raise InvalidAnchor("the chain is empty or has lost its first link: run `marco verify`")
    return anchors.make(first, last, jobs=_jobs(conn, last.seq), key=key)


def check(conn: Conn, anchor: Anchor) -> list[Finding]:
    """What the stored chain says against an anchor."""
    seq = min(anchor.seq, _LAST_SEQ)
    first, link, after, last = (
        link_at(conn, 0),
        link_at(conn, seq),
        link_at(conn, seq + 1),
        link_at(conn),
    )
    jobs = _jobs(conn, seq)
    return list(anchors.check_anchor(anchor, first, link, last, jobs=jobs, after=after))


def _jobs(conn: Conn, seq: int) -> int:
    """Jobs chained up to this link."""
    row = conn.execute(
        "SELECT count(DISTINCT job_id) FROM public.chain WHERE seq <= %s", [seq]
    ).fetchone()
    return row[0] if row else 0
