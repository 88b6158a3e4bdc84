"""What a scorer is given and what it gives, and one request to a server, bounded in time."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from marco_search.deadlines import Call
from marco_search.errors import InvalidSettings
from marco_search.text import one_line, redacted

AT_ONCE = 8
"""Requests, or commands, of one search at the same time."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LONGEST_REASON = 200  # characters
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A finished rollout with an answer. Never holds the expected answer."""

    kind: str  #: of job
    question: str  #: the user's turn
    metadata: Mapping[str, Any]  #: the caller's
    key: str  #: of the answer: answers with equal keys are the same
    answer: str  #: as a reader should see it
    output: str  #: the part that it stands in
    thought: str


Scores = tuple[float, ...]
"""Numbers in [0, 1]: one for each step, or one for the answer."""
Outcome = Scores | str
"""Scores, or why there are none."""


class NoScore(Exception):
    """Why there is no score, in words fit to be stored: short, one line, without secrets."""

    def __init__(self, reason: str) -> None:
        text = one_line(redacted(reason))
        super().__init__(text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}...")


def score_all(score: Callable[[T], Scores], items: Sequence[T]) -> list[Outcome]:
    """The outcome of each item, several at once. `score` raises NoScore."""

    def outcome(item: T) -> Outcome:
        try:
            return score(item)
        except NoScore as error:
            return str(error)

    if not items:
        return []
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as pool:
        return list(pool.map(outcome, items))


class Server:
    """An address that JSON is posted to."""

    def __init__(self, variable: str, url: str, key: SecretStr | None) -> None:
        """Raises InvalidSettings, naming the variable, for an address that can't be used."""
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname, parts.port
        except ValueError:
            raise InvalidSettings(f"{variable}: not an address") from None
        self._tls = parts.scheme == "https"
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        secret = key.get_secret_value().strip() if key else ""
        if parts.scheme not in ("http", "https") or not self._host or "@" in parts.netloc:
            raise InvalidSettings(
                f"{variable}: needs http:// or https:// and a host, without a user; a key goes "
                "into MARCO_REWARD_API_KEY or MARCO_VERIFIER_API_KEY"
            )
        if secret and not self._tls and self._host not in _LOOPBACK:
            raise InvalidSettings(f"{variable}: a key is only sent over https://")
        if secret and not (secret.isascii() and secret.isprintable()):
            raise InvalidSettings(f"{variable}: its key has characters that no header can hold")
        if secret:
            self._headers["Authorization"] = f"Bearer {secret}"

    def post(self, body: bytes, deadline: float, most: int) -> tuple[int, bytes]:
        """Status and answer, of at most `most` bytes, before `deadline` (of time.monotonic()).

        Raises NoScore.
        """
        call = Call(deadline)
        made = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = made(str(self._host), self._port, timeout=call.timeout_s)
        try:
            with contextlib.closing(connection):
                connection.connect()
                with call.using(connection.sock):
                    connection.request("POST", self._path, body, self._headers)
                    with connection.getresponse() as response:
                        found = response.read(most + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = "no answer in time" if call.over else str(error) or repr(error)
            raise NoScore(why) from None
        if len(found) > most:
            raise NoScore(f"the answer is larger than {most >> 10:,} KiB")
        return response.status, found
