"""The chain: one link for each end of a job, each with the hash of the one before.

    head = H("marco-chain 4" || 0x00 || previous || seq || kind || 0x00 || job || root || at)

The number is the link's format (marco_search.audit.formats); in format 1 no zero byte follows
it. seq is 8 bytes, job 16 (zeros: none), at 8 (microseconds since 2000-01-01 UTC), all
big-endian. Link 0, written when the database is made, has a random root: its head is the
database's id. A job that ends twice (it was dead and requeued) has two links; the later one
counts, and verification checks that what the earlier one covered is still there. A redacted job
has one more, of kind redaction, over its rows after the redaction.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Final, Literal
from uuid import UUID

from marco_search.audit.canonical import microseconds
from marco_search.audit.findings import Finding

FIRST: Final = "first"
JOB: Final = "job"
REDACTION: Final = "redaction"
ARCHIVE: Final = "archive"
LinkKind = Literal["first", "job", "redaction", "archive"]
NO_HEAD = b"\x00" * 32
_PREFIXES = {
    1: b"marco-chain 1", 2: b"marco-chain 2\x00", 3: b"marco-chain 3\x00",
    4: b"marco-chain 4\x00",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A row of the table `chain`. `root`: of a job's proof, or the hash of an archive's list."""

    seq: int
    kind: str
    job_id: UUID | None
    root: bytes
    previous: bytes
    head: bytes
    at: datetime
    format: int

    @property
    def expected_head(self) -> bytes:
        """The head that follows from the other fields. Raises KeyError for an unknown format."""
        digest = sha256(_PREFIXES[self.format])
        digest.update(self.previous)
        digest.update(struct.pack(">q", self.seq))
        digest.update(self.kind.encode() + b"\x00")
        digest.update(self.job_id.bytes if self.job_id else b"\x00" * 16)
        digest.update(self.root)
        digest.update(struct.pack(">q", microseconds(self.at)))
        return digest.digest()


def follow(
    last: Link | None, *, kind: LinkKind, job_id: UUID | None, root: bytes, at: datetime,
    format: int,
) -> Link:  # fmt: skip
    """The link that comes after `last`; None: the first."""
    seq, previous = (last.seq + 1, last.head) if last else (0, NO_HEAD)
    link = Link(
        seq=seq, kind=kind, job_id=job_id, root=root, previous=previous, head=b"", at=at,
        format=format,
    )  # fmt: skip
    return replace(link, head=link.expected_head)


def unknown_format(link: Link) -> Finding | None:
    """The finding for a link of a format that only a newer version can check."""
    if link.format in _PREFIXES:
        return None
    known = " or ".join(map(str, _PREFIXES))
    there = f"{link.format}, which a newer marco-search can check"
    return Finding("chain", _key(link), "format", known, there, link.job_id, unknown=True)


def check_link(link: Link, before: Link | None) -> Finding | None:
    """Findings about a link, given the one before it in the table, if any."""
    seq = 0 if before is None else before.seq + 1
    if link.seq != seq:
        return Finding("chain", f"seq {seq}", "a link is missing", "a row", f"seq {link.seq} next")
    previous = NO_HEAD if before is None else before.head
    if link.previous != previous:
        return _finding(link, "previous does not follow", previous, link.previous)
    if unknown := unknown_format(link):
        return unknown
    if link.head != link.expected_head:
        return _finding(link, "head does not match the row", link.expected_head, link.head)
    return None


def check_links(links: Iterable[Link]) -> Iterator[Finding]:
    """Findings about the whole chain, in order of seq."""
    before = None
    for link in links:
        found = check_link(link, before)
        if found is not None:
            yield found
        before = link
    if before is None:
        yield Finding("chain", "seq 0", "the chain is empty", "its first link", "no row")


def _finding(link: Link, what: str, expected: bytes, found: bytes) -> Finding:
    return Finding("chain", _key(link), what, expected.hex()[:16], found.hex()[:16], link.job_id)


def _key(link: Link) -> str:
    return f"seq {link.seq}" + (f", job {link.job_id}" if link.job_id else "")
