"""Merkle trees over a job's rows (RFC 6962, section 2.1, with SHA-256).

    leaf  = H(0x00 || kind || 0x00 || row)      row in its canonical form
    inner = H(0x01 || left || right)            left: the largest power of two of the leaves

The two prefixes keep a leaf from passing for an inner node; the kind keeps a row of one
table from passing for one of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

HASH_BYTES = 32


def leaf_hash(kind: bytes, row: bytes) -> bytes:
    """The hash of one row; `kind` names what it is a row of, such as b"node"."""
    return sha256(b"\x00%b\x00%b" % (kind, row)).digest()


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
