"""Sends webhook deliveries, in threads of a scheduler: a slow receiver delays no other.

Signed by the Standard Webhooks specification (https://www.standardwebhooks.com). A host name is
looked up once, and the connection is made to the address that was checked, which rules out DNS
rebinding. Redirects are not followed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock, Thread
from typing import Final
from uuid import UUID

from marco_search import __version__
from marco_search.deadlines import Call, posted, seconds_of
from marco_search.errors import InputError, MarcoError
from marco_search.metrics import DELIVERIES, record
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.queue import webhooks
from marco_search.store.queue.webhooks import Claimed
from marco_search.text import one_line
from worker import finish

log = logging.getLogger(__name__)

LONGEST_DELAY_S: Final = 21_600.0
_AT_ONCE: Final = 16  # webhooks, each with one delivery at a time
_TURN_S: Final = 10.0  # then others may have the thread
_CLAIM_S: Final = 30.0  # beyond the receiver's time limit: then a delivery is sent again
_MOST_READ: Final = 2**16  # bytes of a response; they are discarded
_LONGEST_ERROR: Final = 300  # characters
_GONE: Final = 410


class Sender:
    """Sends due deliveries. `database` is for its threads."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._threads: dict[UUID, Thread] = {}
        self._lock = Lock()
        self._stop = Event()

    def send(self, webhook_ids: Sequence[UUID]) -> None:
        """Start sending what is due to these webhooks, unless in progress."""
        with self._lock:
            for webhook_id in webhook_ids:
                if webhook_id not in self._threads and len(self._threads) < _AT_ONCE:
                    # A daemon: waiting for a receiver must not keep the process alive.
                    thread = Thread(target=self._take_turn, args=[webhook_id], daemon=True)
                    try:
                        thread.start()
                    except RuntimeError as error:  # no more threads: the next tick tries
                        log.warning("webhook %s: %s", webhook_id, error)
                        return
                    self._threads[webhook_id] = thread

    def close(self, wait_s: float = 1.0) -> None:
        """Send no more; wait at most this long for deliveries in progress, which are sent again."""
        self._stop.set()
        until = time.monotonic() + wait_s
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._database.close()

    def _take_turn(self, webhook_id: UUID) -> None:
        until = time.monotonic() + _TURN_S
        try:
            while not self._stop.is_set() and time.monotonic() < until:
                if not self._send_next(webhook_id):
                    break
        except MarcoError as error:
            log.warning("webhook %s: %s", webhook_id, error)
        except Exception:
            log.exception("webhook %s", webhook_id)
        finally:
            with self._lock:
                del self._threads[webhook_id]
                if not self._threads:
                    # Otherwise each of a thousand workers would keep its connection.
                    self._database.close()

    def _send_next(self, webhook_id: UUID) -> bool:
        """Send one delivery; True if there was one and it arrived, so that the next may follow."""
        settings = self._settings
        with self._database.transaction() as conn:
            lease_s = settings.webhook_timeout_s + _CLAIM_S
            claimed = webhooks.claim(conn, webhook_id, lease_s=lease_s)
            if claimed is None:
                return False
            body = webhooks.body(conn, claimed)
        retry_s: float | None = None
        if body is None:
            error: str | None = "not sent: the job or batch was restarted first"
        else:
            answer = _deliver(claimed, json.dumps(body).encode(), settings)
            error = answer.error
            if answer.status != _GONE and claimed.attempts < settings.webhook_attempts:
                first_s, longest_s = settings.webhook_delay_s, LONGEST_DELAY_S
                delay_s = finish.delay_s(claimed.attempts, first_s=first_s, longest_s=longest_s)
                retry_s = max(delay_s, min(answer.retry_after_s or 0.0, longest_s))
        if error is not None:
            what = "no more attempts" if retry_s is None else f"retrying in {retry_s:.0f} s"
            log.warning("webhook %s: delivery %s: %s; %s", webhook_id, claimed.id, error, what)
        outcome = "delivered" if error is None else "failed" if retry_s is None else "retried"
        record(DELIVERIES, 1, outcome)
        self._database.call(webhooks.report, claimed, error, retry_s=retry_s)
        return error is None


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """One entry of the header webhook-signature."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


@dataclass(frozen=True, slots=True)
class _Answer:
    error: str | None  #: why the delivery did not arrive; None: it did
    status: int | None = None  #: the receiver's, if there was a response
    retry_after_s: float | None = None  #: seconds of its Retry-After


def _deliver(claimed: Claimed, body: bytes, settings: Settings) -> _Answer:
    now = int(time.time())
    signatures = [signature(each, str(claimed.id), now, body) for each in claimed.secrets]
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"marco-search/{__version__}",
        "Connection": "close",
        "webhook-id": str(claimed.id),
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(signatures),
    }
    call = Call(time.monotonic() + settings.webhook_timeout_s)
    check = partial(webhooks.check_address, settings=settings)
    try:
        parts = webhooks.checked_url(claimed.url, settings)
        with posted(parts, body, headers, call, check) as answer:
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer.read(_MOST_READ)  # otherwise some servers report a broken connection
            status, retry_after_s = answer.status, seconds_of(answer.headers["Retry-After"])
    except InputError as error:
        return _Answer(str(error))
    except (OSError, http.client.HTTPException, ValueError) as error:
        if call.over or isinstance(error, TimeoutError):
            return _Answer(f"no response within {settings.webhook_timeout_s:g} s")
        # It may quote what the receiver sent, of any content and length.
        why = one_line(str(error))[:_LONGEST_ERROR] or type(error).__name__
        return _Answer(f"no response: {why}")
    if 200 <= status < 300:
        return _Answer(None, status)
    why = ": redirects are not followed" if 300 <= status < 400 else ""
    return _Answer(f"HTTP {status}{why}", status, retry_after_s)
