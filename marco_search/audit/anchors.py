"""Anchors: the head of the chain at some moment, to be kept where the database's owner can't.

Whoever holds the database can write the whole chain anew, and nothing inside it would show
that. An anchor kept elsewhere does: its head must still stand at its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from marco_search.audit.chain import Link
from marco_search.audit.findings import Finding
from marco_search.errors import InvalidAnchor

FORMAT = "marco-anchor 1"
_CLOCKS = timedelta(hours=1)
"""How far the clock of whoever took an anchor may be from the database's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A head of the chain. Hashes, key and signature are hex; times are ISO 8601, UTC."""

    format: str
    database: str  # head of the chain's first link
    seq: int
    head: str
    jobs: int  # jobs chained up to here
    chained_at: str  # of the link at `seq`
    made_at: str
    public_key: str | None = None  # Ed25519, 32 bytes
    signature: str | None = None  # over all the rest, the public key included

    def signed_bytes(self) -> bytes:
        """What is signed: canonical JSON of every other field."""
        fields = asdict(self)
        del fields["signature"]
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Anchor:
        """The anchor that `to_json` wrote. Raises InvalidAnchor."""
        number = str(data.get("format", "")).removeprefix("marco-anchor ")
        if number.isdecimal() and int(number) > 1:
            raise InvalidAnchor(
                f"an anchor of format {number}, written by a newer marco-search: check it with that"
            )
        try:
            anchor = cls(**data)
            counts = (anchor.seq, anchor.jobs)
            texts = (anchor.database, anchor.head, anchor.public_key or "", anchor.signature or "")
            if anchor.format != FORMAT or any(type(n) is not int or n < 0 for n in counts):
                raise ValueError("another format")
            for text in texts:
                bytes.fromhex(text)
            for moment in (anchor.chained_at, anchor.made_at):
                _moment(moment)
        except (TypeError, ValueError, OverflowError):
            raise InvalidAnchor("not an anchor that `marco anchor` wrote") from None
        return anchor


def make(first: Link, last: Link, *, jobs: int, key: Path | None = None) -> Anchor:
    """The anchor of a chain from `first` to `last`, signed if the file of a key is given."""
    fields: dict[str, Any] = {
        "format": FORMAT,
        "database": first.head.hex(),
        "seq": last.seq,
        "head": last.head.hex(),
        "jobs": jobs,
        "chained_at": last.at.astimezone(UTC).isoformat(),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if key is None:
        return Anchor(**fields)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise InvalidAnchor(f"{key}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise InvalidAnchor(
            f"{key}: not a PEM key without a password; `marco anchor --new-key FILE` makes one"
        ) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise InvalidAnchor(f"{key}: not an Ed25519 key; `marco anchor --new-key FILE` makes one")
    fields["public_key"] = private.public_key().public_bytes_raw().hex()
    signature = private.sign(Anchor(**fields).signed_bytes())
    return Anchor(**fields, signature=signature.hex())


def new_key(path: Path) -> str:
    """Write a new Ed25519 key to a file that only its owner may read; its public key, hex.

    Raises InvalidAnchor if the file exists or can't be made.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise InvalidAnchor(f"{path}: {error.strerror}; name a new file") from None
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    return private.public_key().public_bytes_raw().hex()


def read(path: Path, *, public_key: str | None = None) -> Anchor:
    """The anchor in a file. Its signature is checked if it has one.

    With `public_key` (hex) it must be signed by that key. Raises InvalidAnchor.
    """
    try:
        anchor = Anchor.from_json(json.loads(path.read_bytes()))
    except OSError as error:
        raise InvalidAnchor(f"{path}: {error.strerror}") from None
    except InvalidAnchor as error:
        raise InvalidAnchor(f"{path}: {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InvalidAnchor(f"{path}: not an anchor that `marco anchor` wrote") from None
    if public_key is not None and (anchor.public_key or "").lower() != public_key.strip().lower():
        raise InvalidAnchor(f"{path}: not signed by the key {public_key}")
    if anchor.public_key or anchor.signature:
        _check_signature(anchor, path)
    return anchor


def _check_signature(anchor: Anchor, path: Path) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(anchor.public_key or ""))
        key.verify(bytes.fromhex(anchor.signature or ""), anchor.signed_bytes())
    except (InvalidSignature, ValueError):
        raise InvalidAnchor(f"{path}: the signature does not fit: the anchor was edited") from None


def check_anchor(
    anchor: Anchor,
    first: Link | None,
    there: Link | None,
    last: Link | None,
    *,
    jobs: int,
    after: Link | None = None,
) -> Iterator[Finding]:
    """What the chain says against an anchor.

    `there` is the link at the anchor's seq, `after` the one after it; `jobs` are chained up to
    there.
    """
    database = first.head.hex() if first else "no chain"
    key = f"seq {anchor.seq}"
    if database != anchor.database:
        yield Finding("chain", "seq 0", "another database", anchor.database[:16], database[:16])
    elif there is None:
        seq = f"seq {last.seq}" if last else "nothing"
        what = f"the tail was cut: the anchor of {anchor.made_at} has more"
        yield Finding("chain", key, what, anchor.head[:16], f"an end at {seq}")
    elif there.head.hex() != anchor.head:
        what = f"written anew since the anchor of {anchor.made_at}"
        yield Finding("chain", key, what, anchor.head[:16], there.head.hex()[:16], there.job_id)
    else:
        yield from _check_fields(anchor, there, jobs, after)


def _check_fields(anchor: Anchor, there: Link, jobs: int, after: Link | None) -> Iterator[Finding]:
    """What an unsigned anchor says beside the head, and the chain says otherwise."""
    key, chained, made = f"seq {anchor.seq}", there.at, _moment(anchor.made_at)
    if anchor.jobs != jobs:
        yield Finding("anchor", key, "jobs", f"{jobs} by the chain", str(anchor.jobs))
    if _moment(anchor.chained_at) != chained:
        wanted = chained.astimezone(UTC).isoformat()
        yield Finding("anchor", key, "chained_at", wanted, anchor.chained_at)
    # Of another clock than the chain's, and a link is seen a moment after its time.
    if made < chained - _CLOCKS:
        yield Finding("anchor", key, "made_at", f"after {chained.isoformat()}", anchor.made_at)
    if after is not None and made > after.at + _CLOCKS:
        what = f"before {after.at.isoformat()}, when the next link was chained"
        yield Finding("anchor", key, "made_at", what, anchor.made_at)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() is None:
        raise ValueError("no time zone")
    return moment
