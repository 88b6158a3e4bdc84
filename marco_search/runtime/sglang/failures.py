"""Why a request to a server failed, as a value, and what may be done about it."""

from __future__ import annotations

import json
import re
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from marco_search.errors import BranchFailed, PromptTooLong, RuntimeFailure, RuntimeUnavailable

_LONGEST_BODY = 10_000  # characters of an error's body that are read
# How SGLang 0.4 to 0.5 says that a prompt does not fit.
_TOO_LONG = ("longer than the model's context length", "exceeds the maximum", "maximum allowed")
# The prompt fits, but not all that may be generated: (context, prompt) in tokens.
_TOO_MUCH = re.compile(r"maximum context length of (\d+) tokens.* (\d+) tokens from the input")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed request. `kind` is the error that it is, if nothing more can be done."""

    kind: type[RuntimeFailure]
    message: str
    retryable: bool = False  #: the same request may succeed if it is sent again
    overloaded: bool = False  #: the server is healthy but has too much to do
    unreachable: bool = False  #: no connection could be made
    max_new_tokens: int | None = None  #: the most that may be asked for, where more was
    not_found: bool = False  #: the server has no such path
    retry_after_s: float | None = None  #: how long the server asks us to wait


def unavailable(message: str, *, unreachable: bool = False) -> Failure:
    """No connection, one that was lost, or an answer that can't be used: worth another try."""
    return Failure(
        kind=RuntimeUnavailable, message=message, retryable=True, unreachable=unreachable
    )


def refused(url: str, status: int, retry_after: str | None, details: str) -> Failure:
    """An answer with a status other than 200: its Retry-After header and what it says."""
    message = f"{url} answered {status}" + (f": {details}" if details else "")
    if status in (401, 403):
        message += " (set MARCO_RUNTIME_API_KEY to the server's key)"
        return Failure(kind=RuntimeUnavailable, message=message)
    if status in (408, 429) or status >= 500:
        return Failure(
            kind=RuntimeUnavailable,
            message=message,
            retryable=True,
            overloaded=status in (429, 503),
            retry_after_s=_retry_after(retry_after),
        )
    if any(words in details for words in _TOO_LONG):
        return Failure(kind=PromptTooLong, message=details)
    found = _TOO_MUCH.search(details)
    room = max(0, int(found[1]) - int(found[2]) - 1) if found else None
    return Failure(kind=BranchFailed, message=message, max_new_tokens=room, not_found=status == 404)


def reason(error: Exception) -> str:
    """What an error of the connection says."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message} (set MARCO_RUNTIME_CA to the certificate to trust)"
    return str(error) or type(error).__name__


def details(body: bytes) -> str:
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
