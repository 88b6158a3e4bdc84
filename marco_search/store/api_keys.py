"""Keys of the HTTP API: creation, listing, revocation, lookup and rate limits."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from marco_search.errors import InvalidApiKey, JobNotFound
from marco_search.store.db import Conn, select

Right = Literal["submit", "read", "cancel"]
RIGHTS: Final[tuple[Right, ...]] = ("submit", "read", "cancel")
_FORM = re.compile(r"marco_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
HINT = "make one with `marco keys create` and send it as Authorization: Bearer KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key, without its secret."""

    id: str
    name: str
    tenant: str
    rights: Collection[str]
    per_minute: int | None  #: most requests a minute
    created_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Rate:
    """State of a key's rate limit, including the current request."""

    per_minute: int
    busy_s: float  #: until as many as ever may be sent at once
    exceeded: bool

    @property
    def left(self) -> int:
        """Requests that may be sent at once."""
        return max(0, int((_WINDOW_S - self.busy_s) * self.per_minute / 60))

    @property
    def retry_s(self) -> float:
        """Seconds until the next request may be sent."""
        return max(0.0, self.busy_s + 60 / self.per_minute - 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored(ApiKey):
    hash: bytes = field(repr=False)
    usable: bool


def new_key() -> tuple[str, str]:
    """A random key, and its public id: marco_ID_SECRET."""
    public = secrets.token_hex(6)
    return f"marco_{public}_{secrets.token_urlsafe(32)}", public


def digest(key: str) -> bytes:
    """The stored hash of a key. A key has 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(key.encode()).digest()


def create(
    conn: Conn,
    *,
    tenant: str,
    name: str = "",
    rights: Collection[str] = RIGHTS,
    per_minute: int | None = None,
    expires_in_s: float | None = None,
) -> tuple[str, str]:
    """Store a new key; the key, which can't be read again, and its id."""
    key, public = new_key()
    conn.execute(
        """
        INSERT INTO api_keys (id, hash, tenant, name, rights, per_minute, expires_at)
        VALUES (%s, %s, %s, %s, %s, %s, now() + make_interval(secs => %s))
        """,
        [public, digest(key), tenant, name, list(rights), per_minute, expires_in_s],
    )
    return key, public


def listed(conn: Conn, tenant: str | None = None) -> list[ApiKey]:
    """All keys, or those of a tenant, the oldest first."""
    where = "api_keys WHERE %(tenant)s::text IS NULL OR tenant = %(tenant)s ORDER BY created_at, id"
    return select(conn, ApiKey, where, {"tenant": tenant})


def any_usable(conn: Conn) -> bool:
    """Whether there is a valid key."""
    query = f"SELECT EXISTS (SELECT FROM api_keys WHERE {_USABLE})"  # noqa: S608  # constants
    return conn.execute(query.encode()).fetchone() == (True,)


def revoke(conn: Conn, public: str, tenant: str | None = None) -> None:
    """Revoke a key. Raises JobNotFound for an unknown id."""
    found = conn.execute(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())"
        " WHERE id = %(id)s AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)",
        {"id": public, "tenant": tenant},
    )
    if not found.rowcount:
        raise JobNotFound(f"no API key {public!r}; see `marco keys list --all-tenants`")


_USABLE = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
# The generic cell rate algorithm: each request puts `due_at` off by a minute's part, and may do
# so to a minute from now at most.
_WINDOW_S = 60.0005
_DUE = "greatest(due_at, clock_timestamp()) + make_interval(secs => 60.0 / per_minute)"
_BUSY = "greatest(0, extract(epoch FROM due_at - clock_timestamp()))::float8"
_COUNT = f"""
    UPDATE api_keys SET due_at = {_DUE}
    WHERE id = %s AND {_DUE} <= clock_timestamp() + interval '{_WINDOW_S} s'
    RETURNING {_BUSY}
"""  # noqa: S608  # constants


def taken(conn: Conn, key: str) -> tuple[ApiKey, Rate | None]:
    """The key that a request carries; the request counts against its rate limit, if any.

    Raises InvalidApiKey.
    """
    form = _FORM.fullmatch(key)
    source = f"(SELECT *, {_USABLE} AS usable FROM api_keys) AS key WHERE id = %s"  # noqa: S608
    found = select(conn, _Stored, source, [form[1]]) if form else []
    known = found[0] if found else None
    if known is None or not hmac.compare_digest(known.hash, digest(key)):
        raise InvalidApiKey(f"this API key is not known; {HINT}")
    if not known.usable:
        raise InvalidApiKey(f"API key {known.id} was revoked or has expired; {HINT}")
    return known, _count(conn, known.id, known.per_minute) if known.per_minute else None


def _count(conn: Conn, public: str, per_minute: int) -> Rate:
    conn.execute("SET LOCAL synchronous_commit = off")  # a crash may forget some requests
    if row := conn.execute(_COUNT.encode(), [public]).fetchone():
        return Rate(per_minute, row[0], exceeded=False)
    query = f"SELECT {_BUSY} FROM api_keys WHERE id = %s"  # noqa: S608  # constants
    row = conn.execute(query.encode(), [public]).fetchone()
    return Rate(per_minute, row[0] if row else 60.0, exceeded=True)
