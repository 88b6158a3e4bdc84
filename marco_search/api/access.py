"""Access to the API: keys and their rights.

A key is looked up before any of the body is read. Routes declare the right they need by the type
of their parameter `caller`: Submits, Reads or Cancels.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marco_search.api.responses import refusal, too_large
from marco_search.errors import InvalidApiKey, MarcoError, RateLimitExceeded, RightsMissing
from marco_search.settings import Settings
from marco_search.store import api_keys
from marco_search.store.api_keys import RIGHTS, ApiKey, Rate, Right
from marco_search.store.db import Database
from producer import AsyncProducer

OPEN = ("/healthz", "/docs", "/openapi.json")
"""Paths that take no key."""


_UPLOADS = 2  # at once: of the producer's four connections, and of five threads or more


@dataclass(frozen=True, slots=True)
class Service:
    """State shared by all requests. `local_key`: a key for MARCO_TENANT that is not stored.

    `stopping` is set when the server is to stop, which ends all waits for jobs. Batches of a tenant
    are stored one after another, by one of the `uploads`, which leaves threads and connections for
    other requests.
    """

    settings: Settings
    database: Database
    producer: AsyncProducer
    local_key: str | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    turns: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_UPLOADS))

    def key(self, given: str) -> tuple[ApiKey, Rate | None]:
        """The key and the state of its rate limit. Raises InvalidApiKey."""
        if self.local_key and hmac.compare_digest(given.encode(), self.local_key.encode()):
            local = ApiKey(
                id="local", name="", tenant=self.settings.tenant, rights=RIGHTS, per_minute=None,
                created_at=None, expires_at=None, revoked_at=None,
            )  # fmt: skip
            return local, None
        return self.database.call(api_keys.taken, given)


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request. `producer` submits for, and sees, the key's tenant only."""

    service: Service
    key: ApiKey
    producer: AsyncProducer


def needs(*rights: Right) -> Callable[[Request], Caller]:
    """A dependency: the caller, if the key has these rights. Raises RightsMissing."""

    def caller(request: Request) -> Caller:
        found: Caller = request.state.caller
        for right in rights:
            if right not in found.key.rights:
                raise RightsMissing(
                    f"API key {found.key.id} may not {right}; it may {', '.join(found.key.rights)}"
                )
        return found

    return caller


Submits = Annotated[Caller, Depends(needs("submit"))]
Reads = Annotated[Caller, Depends(needs("read"))]
Asks = Annotated[Caller, Depends(needs("submit", "read"))]
Cancels = Annotated[Caller, Depends(needs("cancel"))]
# Only for the OpenAPI page: Guard has already checked the header.
BEARER = HTTPBearer(auto_error=False, description="A key that `marco keys create` made")


class Guard:
    """ASGI middleware that identifies the caller of a request."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, rate = self._app, None
        if scope["type"] == "http" and scope["path"] not in OPEN:
            try:
                key, rate = await self._key(Headers(scope=scope))
                if rate and rate.exceeded:
                    reason = f"API key {key.id} may send {rate.per_minute:,} requests a minute"
                    raise RateLimitExceeded(reason, max(1.0, ceil(rate.retry_s)))
                caller = Caller(self._service, key, self._service.producer.for_tenant(key.tenant))
                scope.setdefault("state", {})["caller"] = caller
            except MarcoError as error:
                answer = refusal(error)
        await answer(scope, receive, _in_our_shape(scope, receive, send, rate))

    async def _key(self, headers: Headers) -> tuple[ApiKey, Rate | None]:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise InvalidApiKey(f"no API key; {api_keys.HINT}")
        return await asyncio.to_thread(self._service.key, given.strip())


def _in_our_shape(scope: Scope, receive: Receive, send: Send, rate: Rate | None) -> Send:
    """`send`, with the headers of the rate limit, and an answer of ours in place of Starlette's
    own to a body that is too large."""
    replaced = False

    async def shaped(message: Message) -> None:
        nonlocal replaced
        if rate and message["type"] == "http.response.start" and not replaced:
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers["x-ratelimit-limit-requests"] = str(rate.per_minute)
            headers["x-ratelimit-remaining-requests"] = str(rate.left)
            headers["x-ratelimit-reset-requests"] = f"{rate.busy_s:.3f}s"
        if message.get("status") == 413 and not replaced:
            replaced = True
            await too_large()(scope, receive, send)
        elif not replaced:
            await send(message)

    return shaped
