"""The proof of one job: the hash of each of its rows, and the Merkle root over all of them.

Keeping the hashes of the rows beside the root is what lets a verifier name the row that was
changed; the root alone would only say that some row was. A change of a row and its hash
changes the root, and that is in the chain. The tree is that of RFC 6962, section 2.1, with
SHA-256:

    leaf  = H(0x00 || kind || 0x00 || row)      row in its canonical form
    inner = H(0x01 || left || right)            left: the largest power of two of the leaves

The two prefixes keep a leaf from passing for an inner node; the kind keeps a row of one
table from passing for one of another.

Since format 4 the columns that may hold texts stand last and enter a leaf through a commitment,
so that the proof still holds for all others once the texts and the job's salt are gone:

    leaf       = H(0x00 || kind || 0x00 || other columns || commitment)
    commitment = H(0x02 || salt || kind || 0x00 || key || texts)       key: 8 bytes, big-endian
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256

from marco_search.audit.canonical import Reader

HASH_BYTES = 32
NO_SALT = bytes(16)
"""Of rows without texts: those of a job that was redacted."""
_SIZE = struct.Struct(">i").unpack_from
_KEY = struct.Struct(">q").pack

Row = tuple[int, bytes]
"""A row's key within its job, and its canonical form."""
Rows = Mapping[str, Sequence[Row]]
"""A job's rows by kind, each in key order."""
Part = tuple[int, bytes, bytes]
"""A row's key, and its canonical form in two parts: the texts apart."""


@dataclass(frozen=True)
class Kind:
    """A kind of row."""

    table: str  #: where it is stored
    job: str  #: the column that holds the job's id
    key: str | None  #: the column that is its key within the job; None: one row for each job
    columns: Mapping[str, str]  #: its canonical columns, name to type
    texts: int = 0  #: how many of them, the last, are committed to and may be redacted

    @cached_property
    def reader(self) -> Reader:
        """Reads its rows."""
        return Reader(self.columns)

    def split(self, rows: Sequence[Row]) -> list[Part]:
        """Each row's key, other columns, and texts. Raises struct.error for no such row."""
        parts = []
        others = range(len(self.columns) - self.texts)
        for key, row in rows:
            at = 2
            for _ in others:
                (size,) = _SIZE(row, at)
                at += 4 + size if size > 0 else 4
            parts.append((key, row[:at], row[at:]))
        return parts


Kinds = Mapping[str, Kind]
"""What a proof covers, by name; the leaves of its Merkle tree stand in this order, then by key."""

BULK = ("node", "rollout", "answer")
"""Kinds whose rows an archive takes out of the database."""


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root of a tree with these leaf hashes; that of no leaves is the hash of nothing.

    Pairs are joined level by level and an odd one out moves up as it is, which gives the
    tree of RFC 6962 without its recursion.
    """
    if not leaves:
        return sha256().digest()
    level = list(leaves)
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        level = [
            sha256(b"\x01" + left + right).digest()
            for left, right in zip(level[::2], level[1::2], strict=False)
        ] + odd
    return level[0]


Hashes = Mapping[str, Mapping[int, bytes]]
"""Of a job's rows, by kind (in the format's order) and key."""
_Commit = Callable[[str, Sequence[Part]], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Proof:
    """The hashes of a job's rows, by kind (in the format's order) and key."""

    hashes: Hashes

    @property
    def leaves(self) -> list[bytes]:
        """All hashes in order."""
        return [leaf for leaves in self.hashes.values() for leaf in leaves.values()]

    @property
    def root(self) -> bytes:
        """The Merkle root."""
        return merkle_root(self.leaves)

    def like(self, packed: bytes) -> Proof | None:
        """Other hashes in the places of these; None if there are more or fewer."""
        keys = {kind: list(hashes) for kind, hashes in self.hashes.items()}
        return _placed(keys, packed)

    def packed(self) -> bytes:
        """All hashes in order, one after the other."""
        return b"".join(self.leaves)


def _committed(salt: bytes, name: str, parts: Sequence[Part]) -> list[bytes]:
    """What stands for the texts of each row."""
    start = b"\x02%b%b\x00" % (salt, name.encode())
    return [sha256(start + _KEY(key) + texts).digest() for key, _, texts in parts]


def prove(rows: Rows, kinds: Kinds, salt: bytes) -> Proof:
    """The proof of a job with these rows, each kind's in key order, and this salt."""
    return _proof(rows, kinds, partial(_committed, salt))


def prove_without_texts(rows: Rows, kinds: Kinds, commitments: Hashes) -> Proof:
    """The same, whatever the texts read now; a row that has no commitment has none that fits."""

    def known(name: str, parts: Sequence[Part]) -> list[bytes]:
        return [commitments.get(name, {}).get(key, b"") for key, *_ in parts]

    return _proof(rows, kinds, known)


def _proof(rows: Rows, kinds: Kinds, commit: _Commit) -> Proof:
    hashes = {}
    for name, kind in kinds.items():
        found = rows.get(name, ())
        if kind.texts:
            parts = kind.split(found)
            both = zip(parts, commit(name, parts), strict=True)
            found = [(key, other + committed) for (key, other, _), committed in both]
        start = b"\x00%b\x00" % name.encode()
        hashes[name] = {key: sha256(start + row).digest() for key, row in found}
    return Proof(hashes)


def commitments(rows: Rows, kinds: Kinds, salt: bytes) -> Proof:
    """The commitments to the texts of these rows, in the place of their hashes."""
    hashes = {}
    for name, kind in kinds.items():
        parts = kind.split(rows.get(name, ()))
        keys = [key for key, *_ in parts]
        hashes[name] = dict(zip(keys, _committed(salt, name, parts), strict=True))
    return Proof(hashes)


def unpack(keys: Mapping[str, Sequence[int]], packed: bytes, kinds: Kinds) -> Proof | None:
    """The proof that `packed` holds; None if it does not have a hash for each key.

    `keys`: of the kinds that have some.
    """
    return _placed({name: keys[name] if kind.key else (0,) for name, kind in kinds.items()}, packed)


def _placed(all_keys: Mapping[str, Sequence[int]], packed: bytes) -> Proof | None:
    if len(packed) != HASH_BYTES * sum(map(len, all_keys.values())):
        return None
    parts = iter([packed[i : i + HASH_BYTES] for i in range(0, len(packed), HASH_BYTES)])
    # The keys first: zip would take a part too many.
    return Proof(
        {kind: dict(zip(its_keys, parts, strict=False)) for kind, its_keys in all_keys.items()}
    )
