"""Anchors: the head of the chain at some moment, to be kept where the database's owner can't.

The owner of the database can rewrite the whole chain, and nothing inside it would show that. An
anchor kept elsewhere does: its head must still be at its place in the chain.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt, StringConstraints

from marco_search.audit.chain import Link
from marco_search.audit.findings import Finding
from marco_search.errors import InvalidAnchor

_CLOCKS = timedelta(hours=1)
"""How far the clock of an anchor's maker may be from the database's."""


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() is None:
        raise ValueError("no time zone")
    return moment


# The texts stay as they are: they are what is signed.
Hex = Annotated[str, StringConstraints(pattern="^([0-9A-Fa-f]{2})*$")]
Time = Annotated[str, AfterValidator(lambda text: _moment(text) and text)]


class Anchor(BaseModel):
    """A head of the chain. Hashes, key and signature are hex; times are ISO 8601, UTC."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["marco-anchor 1"] = "marco-anchor 1"
    database: Hex  #: head of the chain's first link
    seq: NonNegativeInt
    head: Hex
    jobs: NonNegativeInt  #: jobs chained up to here
    chained_at: Time  #: of the link at `seq`
    made_at: Time
    public_key: Hex | None = None  #: Ed25519, 32 bytes
    signature: Hex | None = None  #: over all the rest, the public key included

    def signed_bytes(self) -> bytes:
        """What is signed: canonical JSON of every other field."""
        fields = self.model_dump(exclude={"signature"})
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def make(first: Link, last: Link, *, jobs: int, key: Path | None = None) -> Anchor:
    """The anchor of a chain from `first` to `last`, signed if the file of a key is given."""
    fields: dict[str, Any] = {
        "database": first.head.hex(),
        "seq": last.seq,
        "head": last.head.hex(),
        "jobs": jobs,
        "chained_at": last.at.astimezone(UTC).isoformat(),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if key is None:
        return Anchor(**fields)
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
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise InvalidAnchor(f"{path}: {error.strerror}; name a new file") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
    except OSError as error:
        path.unlink(missing_ok=True)  # else it is in the way of the next attempt
        raise InvalidAnchor(f"{path}: {error.strerror}") from None
    return private.public_key().public_bytes_raw().hex()


def read(path: Path, *, public_key: str | None = None) -> Anchor:
    """The anchor in a file. Its signature is checked if it has one.

    With `public_key` (hex) it must be signed by that key. Raises InvalidAnchor.
    """
    try:
        data = json.loads(path.read_bytes())
        number = str(data.get("format", "")).removeprefix("marco-anchor ")
        if number.isdecimal() and int(number) > 1:
            raise InvalidAnchor(
                f"{path}: an anchor of format {number}, written by a newer marco-search: "
                "check it with that"
            )
        anchor = Anchor(**data)
    except OSError as error:
        raise InvalidAnchor(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InvalidAnchor(f"{path}: not an anchor that `marco anchor` wrote") from None
    if public_key is not None and (anchor.public_key or "").lower() != public_key.strip().lower():
        raise InvalidAnchor(f"{path}: not signed by the key {public_key}")
    if anchor.public_key or anchor.signature:
        try:
            signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(anchor.public_key or ""))
            signer.verify(bytes.fromhex(anchor.signature or ""), anchor.signed_bytes())
        except (InvalidSignature, ValueError):
            raise InvalidAnchor(f"{path}: wrong signature: the anchor was edited") from None
    return anchor


def check_anchor(
    anchor: Anchor,
    first: Link | None,
    link: Link | None,
    last: Link | None,
    *,
    jobs: int,
    after: Link | None = None,
) -> Iterator[Finding]:
    """Findings of the chain against an anchor.

    `link` is the link at the anchor's seq, `after` the one after it; `jobs` are chained up to
    there.
    """
    database = first.head.hex() if first else "no chain"
    key, made = f"seq {anchor.seq}", _moment(anchor.made_at)
    if database != anchor.database:
        yield Finding("chain", "seq 0", "another database", anchor.database[:16], database[:16])
        return
    if link is None:
        seq = f"seq {last.seq}" if last else "nothing"
        what = f"the tail was cut: the anchor of {anchor.made_at} has more"
        yield Finding("chain", key, what, anchor.head[:16], f"an end at {seq}")
        return
    if link.head.hex() != anchor.head:
        what = f"rewritten since the anchor of {anchor.made_at}"
        yield Finding("chain", key, what, anchor.head[:16], link.head.hex()[:16], link.job_id)
        return
    # The other claims of an anchor, which may be unsigned.
    if anchor.jobs != jobs:
        yield Finding("anchor", key, "jobs", f"{jobs} by the chain", str(anchor.jobs))
    if _moment(anchor.chained_at) != link.at:
        wanted = link.at.astimezone(UTC).isoformat()
        yield Finding("anchor", key, "chained_at", wanted, anchor.chained_at)
    if after is not None and after.at < link.at:
        return  # the chain's clock was set back here: it does not tell when the anchor was made
    # Of another clock than the chain's, and a link is seen a moment after its time.
    if made < link.at - _CLOCKS:
        yield Finding("anchor", key, "made_at", f"after {link.at.isoformat()}", anchor.made_at)
    if after is not None and made > after.at + _CLOCKS:
        what = f"before {after.at.isoformat()}, when the next link was chained"
        yield Finding("anchor", key, "made_at", what, anchor.made_at)
