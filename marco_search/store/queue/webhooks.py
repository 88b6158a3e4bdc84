"""Webhooks: URLs that are notified when a job or batch ends, and the outcome of each delivery.

A delivery is stored by the transaction that ends the job (`states.outbox`), as ids only: its body
is built from the job when it is sent, so that a redaction covers what is not sent yet. The sender
(worker.sender) claims it for a while; if no outcome is reported by then, it is sent again.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit
from uuid import UUID, uuid4

from psycopg.rows import class_row

from marco_search.errors import InputError, JobNotFound
from marco_search.settings import Settings, is_host
from marco_search.store.db import Conn, select
from marco_search.store.queue import batches
from marco_search.store.queue.states import BATCH_FINISHED, JOB_FINISHED

EVENTS: Final = (JOB_FINISHED, BATCH_FINISHED)
TEST: Final = "test"
OVERLAP_S = 86_400.0
"""How long deliveries are also signed with the old secret after a rotation."""
_KEEP_DAYS = 30
_LONGEST_URL = 2048
_NAT64 = ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A URL and its events, without its secret."""

    id: UUID
    tenant: str
    url: str
    events: list[str]
    created_at: datetime
    pending: int  #: deliveries that have not arrived yet
    failed: int  #: deliveries that have failed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    id: UUID
    webhook_id: UUID
    event: str
    job_id: UUID | None
    batch_id: UUID | None
    created_at: datetime
    attempts: int  #: one in progress included


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery(_Event):
    """An event that a webhook is notified of."""

    state: str  #: pending, delivered or failed
    next_at: datetime  #: if pending
    tried_at: datetime | None
    error: str | None  #: of the last attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed(_Event):
    """A delivery to send now."""

    url: str
    secrets: list[str] = field(repr=False)  #: one, or two during a rotation


def checked_url(url: str, settings: Settings) -> SplitResult:
    """The parts of a URL that deliveries may be posted to. Raises InputError."""
    flaw = "URL: must be https://host/path, in ASCII, without a user or password"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise InputError(flaw) from None
    printable = url.isascii() and url.isprintable() and " " not in url
    if not printable or not is_host(host) or not host or "@" in parts.netloc or parts.fragment:
        raise InputError(flaw)
    if len(url) > _LONGEST_URL or parts.scheme not in ("http", "https"):
        raise InputError(f"{flaw}, of at most {_LONGEST_URL:,} characters")
    if parts.scheme == "http" and not settings.webhook_http:
        raise InputError("URL: must begin with https:// (or set MARCO_WEBHOOK_HTTP=true)")
    try:
        ip_address(host)
    except ValueError:
        return parts  # a name: looked up and checked whenever something is sent
    check_address(host, settings)
    return parts


def check_address(address: str, settings: Settings) -> None:
    """Raises InputError for an IP address that is neither public nor allowed by the settings."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        # An IPv6 address that embeds an IPv4 address is judged by the latter.
        inner = ip_address(int(found) & 0xFFFFFFFF) if found in _NAT64 else found.ipv4_mapped
        found = inner or found
    if any(found in network for network in settings.webhook_networks):
        return
    tunnel = isinstance(found, IPv6Address) and (found.sixtofour or found.teredo)
    if not found.is_global or found.is_multicast or tunnel:
        raise InputError(f"{address} is not a public address; MARCO_WEBHOOK_NETWORKS allows others")


def new_secret() -> str:
    """A random key of 32 bytes, as Standard Webhooks writes it."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def add(
    conn: Conn, url: str, settings: Settings, *, tenant: str, events: Sequence[str] = EVENTS
) -> tuple[UUID, str]:
    """A new webhook's id and secret, which is not shown again. Raises InputError."""
    checked_url(url, settings)
    if not events or not set(events) <= set(EVENTS):
        raise InputError(f"events: must be of {', '.join(EVENTS)}")
    webhook_id, secret = uuid4(), new_secret()
    conn.execute(
        "INSERT INTO webhooks (id, tenant, url, events, secret) VALUES (%s, %s, %s, %s, %s)",
        [webhook_id, tenant, url, list(dict.fromkeys(events)), secret],
    )
    return webhook_id, secret


def registered(conn: Conn, *, tenant: str | None = None) -> list[Webhook]:
    """The webhooks, of a tenant if given, the oldest first."""
    source = """webhooks CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE state = 'pending') AS pending,
                count(*) FILTER (WHERE state = 'failed') AS failed
            FROM webhook_deliveries WHERE webhook_id = webhooks.id
        ) AS counted
        WHERE %(tenant)s::text IS NULL OR tenant = %(tenant)s ORDER BY created_at, id"""
    return select(conn, Webhook, source, {"tenant": tenant})


def remove(conn: Conn, webhook_id: UUID, *, tenant: str | None = None) -> None:
    """Remove a webhook and its deliveries. Raises JobNotFound."""
    _change(conn, "DELETE FROM webhooks", webhook_id, tenant)


def rotate(
    conn: Conn, webhook_id: UUID, *, tenant: str | None = None, overlap_s: float = OVERLAP_S
) -> str:
    """Give a webhook a new secret; the old one stays valid for `overlap_s`. Raises JobNotFound."""
    secret = new_secret()
    _change(
        conn,
        "UPDATE webhooks SET old_secret = secret, secret = %(secret)s,"
        " old_until = now() + make_interval(secs => %(overlap_s)s)",
        webhook_id,
        tenant,
        secret=secret,
        overlap_s=overlap_s,
    )
    return secret


def add_test(conn: Conn, webhook_id: UUID, *, tenant: str | None = None) -> UUID:
    """Store a delivery of the event `test`; its id. Raises JobNotFound."""
    _change(conn, "SELECT FROM webhooks", webhook_id, tenant)
    delivery_id = uuid4()
    conn.execute(
        "INSERT INTO webhook_deliveries (id, webhook_id, event) VALUES (%s, %s, %s)",
        [delivery_id, webhook_id, TEST],
    )
    return delivery_id


def _change(
    conn: Conn, statement: str, webhook_id: UUID, tenant: str | None, **given: object
) -> None:
    """Run a statement on a webhook. Raises JobNotFound."""
    where = " WHERE id = %(id)s AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)"
    done = conn.execute((statement + where).encode(), given | {"id": webhook_id, "tenant": tenant})
    if not done.rowcount:
        raise JobNotFound(f"no webhook {webhook_id}; `marco webhooks list` shows them")


def deliveries(
    conn: Conn,
    *,
    tenant: str | None = None,
    webhook_id: UUID | None = None,
    state: str | None = None,
    delivery_id: UUID | None = None,
    limit: int = 100,
) -> list[Delivery]:
    """Deliveries, latest first; optionally of a tenant, webhook or `state`, or only this one."""
    source = """webhook_deliveries
        WHERE (%(tenant)s::text IS NULL OR webhook_id IN
                (SELECT id FROM webhooks WHERE tenant = %(tenant)s))
            AND (%(webhook)s::uuid IS NULL OR webhook_id = %(webhook)s)
            AND (%(state)s::text IS NULL OR state = %(state)s)
            AND (%(id)s::uuid IS NULL OR id = %(id)s)
        ORDER BY created_at DESC, id LIMIT %(limit)s"""
    given = {"tenant": tenant, "webhook": webhook_id, "state": state, "id": delivery_id}
    return select(conn, Delivery, source, given | {"limit": limit})


def resend(
    conn: Conn,
    *,
    tenant: str | None = None,
    webhook_id: UUID | None = None,
    delivery_id: UUID | None = None,
) -> int:
    """Send a delivery again, whatever its state, or all failed ones of a webhook.

    Raises JobNotFound for a webhook that is unknown.
    """
    if webhook_id is not None:
        _change(conn, "SELECT FROM webhooks", webhook_id, tenant)
    return conn.execute(
        """
        UPDATE webhook_deliveries AS d SET state = 'pending', attempts = 0, next_at = now()
        FROM webhooks AS w WHERE w.id = d.webhook_id
            AND (%(tenant)s::text IS NULL OR w.tenant = %(tenant)s)
            AND (d.id = %(id)s OR w.id = %(webhook)s AND state = 'failed')
        """,
        {"tenant": tenant, "webhook": webhook_id, "id": delivery_id},
    ).rowcount


def due(conn: Conn) -> list[UUID]:
    """Webhooks with due deliveries, the longest waiting first."""
    rows = conn.execute(
        "SELECT w.id FROM webhooks AS w CROSS JOIN LATERAL (SELECT next_at FROM webhook_deliveries"
        " WHERE webhook_id = w.id AND state = 'pending' AND next_at <= now()"
        " ORDER BY next_at LIMIT 1) AS first ORDER BY first.next_at"
    )
    return [row[0] for row in rows]


def claim(conn: Conn, webhook_id: UUID, *, lease_s: float) -> Claimed | None:
    """Claim the webhook's next delivery for `lease_s` seconds; None if none is due."""
    with conn.cursor(row_factory=class_row(Claimed)) as cursor:
        return cursor.execute(
            """
            WITH due AS (
                SELECT id FROM webhook_deliveries
                WHERE webhook_id = %(webhook)s AND state = 'pending' AND next_at <= now()
                ORDER BY next_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
            )
            UPDATE webhook_deliveries AS d SET attempts = attempts + 1, tried_at = now(),
                next_at = now() + make_interval(secs => %(lease_s)s)
            FROM due, webhooks AS w WHERE d.id = due.id AND w.id = d.webhook_id
            RETURNING d.id, webhook_id, event, job_id, batch_id, d.created_at, attempts, url,
                CASE WHEN old_until > now() THEN ARRAY[secret, old_secret] ELSE ARRAY[secret] END
                    AS secrets
            """,
            {"webhook": webhook_id, "lease_s": lease_s},
        ).fetchone()


def report(conn: Conn, claimed: Claimed, error: str | None, *, retry_s: float | None) -> None:
    """Record that the delivery arrived, or the error, and after how long to retry; None: never.

    A failure is not recorded if another attempt has started since.
    """
    conn.execute(
        """
        UPDATE webhook_deliveries SET error = %(error)s, state = CASE
                WHEN %(error)s::text IS NULL THEN 'delivered'
                WHEN %(retry_s)s::float8 IS NULL THEN 'failed' ELSE 'pending' END,
            next_at = now() + make_interval(secs => coalesce(%(retry_s)s, 0))
        WHERE id = %(id)s AND state = 'pending'
            AND (attempts = %(attempts)s OR %(error)s::text IS NULL)
        """,
        {"id": claimed.id, "attempts": claimed.attempts, "error": error, "retry_s": retry_s},
    )


def forget(conn: Conn) -> None:
    """Delete old deliveries that are delivered or failed."""
    conn.execute(
        "DELETE FROM webhook_deliveries AS d USING webhooks AS w WHERE d.webhook_id = w.id"
        " AND d.state <> 'pending' AND d.created_at < now() - make_interval(days => %s)",
        [_KEEP_DAYS],
    )


def body(conn: Conn, claimed: Claimed) -> dict[str, Any] | None:
    """The body to send; None if the job or batch was restarted and has not ended."""
    data: dict[str, Any] | None = {}
    if claimed.job_id is not None:
        data = _job(conn, claimed.job_id)
    elif claimed.batch_id is not None:
        data = _batch(batches.find(conn, claimed.batch_id))
    if data is None:
        return None
    return {"type": claimed.event, "timestamp": claimed.created_at.isoformat(), "data": data}


def _job(conn: Conn, job_id: UUID) -> dict[str, Any] | None:
    row = conn.execute(
        """
        SELECT jsonb_build_object('job_id', id, 'tenant', tenant, 'kind', kind, 'state', state,
            'answer', answer, 'confidence', confidence, 'stop_reason', stop_reason,
            'error', CASE WHEN state <> 'succeeded' THEN jsonb_build_object(
                'type', last_error -> 'type', 'message', last_error -> 'message') END,
            'batch_id', batch_id, 'batch_line', batch_line, 'custom_id', custom_id,
            'idempotency_key', idempotency_key, 'metadata', payload -> 'metadata',
            'rollouts', rollouts, 'generated_tokens', generated_tokens, 'seconds', seconds,
            'redacted', redacted_at IS NOT NULL,
            'created_at', created_at, 'finished_at', finished_at)
        FROM jobs WHERE id = %s AND finished_at IS NOT NULL
        """,
        [job_id],
    ).fetchone()
    return row[0] if row else None


def _batch(found: batches.Batch) -> dict[str, Any] | None:
    if found.finished_at is None:
        return None
    return {
        "batch_id": str(found.id),
        "tenant": found.tenant,
        "metadata": found.metadata,
        "lines": found.lines,
        "refused": found.refused,
        "states": found.states,
        "cancelled_at": found.cancelled_at and found.cancelled_at.isoformat(),
        "created_at": found.created_at.isoformat(),
        "finished_at": found.finished_at.isoformat(),
    }
