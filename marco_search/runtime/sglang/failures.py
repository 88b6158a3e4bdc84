"""Why a request to a server came to nothing, as a value, and what may be done about it."""

from __future__ import annotations

import json
import re
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from marco_search.errors import BranchFailed, PromptTooLong, RuntimeFailure, RuntimeUnavailable

_LONGEST_BODY = 10_000  # characters of an error's body that are looked at
# How SGLang 0.4 to 0.5 says that a prompt does not fit.
_TOO_LONG = ("longer than the model's context length", "exceeds the maximum", "maximum allowed")
# The prompt fits, but not all that may be generated: (context, prompt) in tokens.
_TOO_MUCH = re.compile(r"maximum context length of (\d+) tokens.* (\d+) tokens from the input")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed request. `kind` is the error that it is, if nothing more can be done."""

    kind: type[RuntimeFailure]
    message: str
    again: bool = False  # the same request may succeed if it is sent again
    busy: bool = False  # the server is well but has too much to do
    gone: bool = False  # no connection could be made
    room: int | None = None  # tokens that may be asked for at most, where more were
    missing: bool = False  # the server has no such path
    retry_after_s: float | None = None  # how long the server asks us to wait


def cut_short(deadline_passed: bool) -> Failure:
    """A request that we ended ourselves."""
    if deadline_passed:
        return Failure(kind=BranchFailed, message="no answer before the branch's deadline")
    return Failure(kind=BranchFailed, message="aborted")


def unreachable(url: str, why: str) -> Failure:
    """No connection."""
    return Failure(
        kind=RuntimeUnavailable,
        message=f"{url} can't be reached: {why}",
        again=True,
        gone=True,
    )


def broken_off(url: str, why: str) -> Failure:
    """The connection was lost, or fell silent, before the answer was complete."""
    return Failure(
        kind=RuntimeUnavailable, message=f"{url} broke off its answer: {why}", again=True
    )


def too_large(url: str, path: str, most: int) -> Failure:
    """An answer of more than `most` bytes, which was not read to its end."""
    message = f"{url}{path}: the answer is larger than {most >> 10:,} KiB, all that was asked for"
    return Failure(kind=BranchFailed, message=message)


def not_json(url: str, path: str) -> Failure:
    """An answer of 200 that is not a JSON object."""
    return odd_answer(url, path, "the answer is not a JSON object")


def odd_answer(url: str, path: str, why: str) -> Failure:
    """An answer of 200 that can't be used."""
    return Failure(kind=RuntimeUnavailable, message=f"{url}{path}: {why}", again=True)


def refused(url: str, path: str, status: int, retry_after: str | None, said: str) -> Failure:
    """An answer with a status other than 200: its Retry-After header and what it says."""
    message = f"{url}{path} answered {status}" + (f": {said}" if said else "")
    if status in (401, 403):
        message += " (set MARCO_RUNTIME_API_KEY to the server's key)"
        return Failure(kind=RuntimeUnavailable, message=message)
    if status in (408, 429) or status >= 500:
        return Failure(
            kind=RuntimeUnavailable,
            message=message,
            again=True,
            busy=status in (429, 503),
            retry_after_s=_retry_after(retry_after),
        )
    if any(words in said for words in _TOO_LONG):
        return Failure(kind=PromptTooLong, message=said)
    return Failure(kind=BranchFailed, message=message, room=_room(said), missing=status == 404)


def reason(error: Exception) -> str:
    """What an error of the connection says."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message} (set MARCO_RUNTIME_CA to the certificate to trust)"
    return str(error) or type(error).__name__


def said(body: bytes) -> str:
    """The server's own words: OpenAI's error object, FastAPI's detail, or the text as it is."""
    text = body[:_LONGEST_BODY].decode(errors="replace")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return text
    if isinstance(found, dict):
        found = found.get("error", found)
    if isinstance(found, dict):
        found = found.get("message", found.get("detail", found))
    return found[:_LONGEST_BODY] if isinstance(found, str) else text


def _room(said: str) -> int | None:
    """Tokens that a completion may have, out of a message that more were asked for."""
    found = _TOO_MUCH.search(said)
    return max(0, int(found[1]) - int(found[2]) - 1) if found else None


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
