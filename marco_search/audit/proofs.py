"""The proof of one job: the hash of each of its rows, and the Merkle root over all of them.

Keeping the hashes of the rows beside the root is what lets a verifier name the row that was
changed; the root alone would only say that some row was. Whoever changes a row and its hash
changes the root, and that is in the chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from marco_search.audit.merkle import HASH_BYTES, leaf_hash, merkle_root

Row = tuple[int, bytes]
"""A row's key within its job, and its canonical form."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of row: where it is stored, its key within the job, its canonical columns."""

    table: str
    job: str  # the column that holds the job's id
    key: str | None  # None: one row for each job
    columns: Mapping[str, str]


Kinds = Mapping[str, Kind]
"""What a proof covers, by name; the leaves of its Merkle tree stand in this order, then by key."""

BULK = ("node", "rollout", "answer")
"""Kinds whose rows an archive takes out of the database."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The hashes of a job's rows, by kind (in the format's order) and key."""

    hashes: Mapping[str, Mapping[int, bytes]]

    @property
    def root(self) -> bytes:
        """The Merkle root."""
        return merkle_root([leaf for leaves in self.hashes.values() for leaf in leaves.values()])

    def packed(self) -> bytes:
        """All hashes in order, one after the other."""
        return b"".join(leaf for leaves in self.hashes.values() for leaf in leaves.values())


def prove(rows: Mapping[str, Sequence[Row]], kinds: Kinds) -> Proof:
    """The proof of a job with these rows; each kind's in key order."""
    return Proof(
        {
            kind: {key: leaf_hash(kind.encode(), data) for key, data in rows.get(kind, ())}
            for kind in kinds
        }
    )


def unpack(keys: Mapping[str, Sequence[int]], packed: bytes, kinds: Kinds) -> Proof | None:
    """The proof that `packed` holds; None if it does not have a hash for each key."""
    if len(packed) != HASH_BYTES * sum(len(keys[kind]) for kind in kinds):
        return None
    hashes, at = {}, 0
    for kind in kinds:
        end = at + HASH_BYTES * len(keys[kind])
        parts = (packed[i : i + HASH_BYTES] for i in range(at, end, HASH_BYTES))
        hashes[kind] = dict(zip(keys[kind], parts, strict=True))
        at = end
    return Proof(hashes)
