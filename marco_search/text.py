"""Text that is safe to print or log: without secrets, without control characters.

Any error may quote an address with its password, even a malformed one, so text is searched for
the secrets of this process's environment and for what looks like one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from urllib.parse import unquote

HIDDEN = "***"
_ADDRESSES = (
    "DATABASE_URL", "REDIS_URL", "MARCO_RUNTIME", "MARCO_REWARD_URL", "OTEL_EXPORTER_OTLP_ENDPOINT",
)  # fmt: skip
_SECRET_NAME = re.compile(r"(?i)(password|passwd|token|secret|api_key|_headers)$")
_SECRET_FIELD = re.compile(r"(?i)passw|passfile|secret|api[_-]?key|(^|[_-])token$")
_LEAST = 4  # characters; a shorter password would match parts of many words
_CERTAIN = 8  # from this length on replaced anywhere, below only as a whole word

_USER_INFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:@/'\"]*):[^\s'\"]+@", re.IGNORECASE)
_FIELD = re.compile(r"([?&;\s]|^)([\w%.-]+)=('[^']*'|[^&\s'\"]+)")
# C0 but for tab and line feed, C1, DEL, and what turns the writing direction or ends a line.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CREDENTIALS = re.compile(
    r"(?i)\b(bearer(?:\s+|%20))[\w.~+/=-]{8,}|\b(basic(?:\s+|%20))[a-z0-9+/]{15,}=*"
)


def escaped(text: str) -> str:
    """`text` with control characters shown as JSON writes them (\\u001b), not obeyed."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """`text` without control characters and without line feeds, which show as \\n."""
    return escaped(text).replace("\n", "\\n")


def counted(number: int, noun: str) -> str:
    """ "1 job", "1,200 jobs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def redacted(text: str) -> str:
    """`text` with passwords, keys and tokens replaced by ***."""
    known = _known(tuple(_secrets()))
    if known is not None:
        text = known.sub(HIDDEN, text)
    text = _USER_INFO.sub(rf"\1:{HIDDEN}@", text)
    text = _CREDENTIALS.sub(lambda found: (found[1] or found[2]) + HIDDEN, text)
    return _FIELD.sub(_hide_field, text)


def _hide_field(found: re.Match[str]) -> str:
    before, name, _ = found.groups()
    secret = _SECRET_FIELD.search(unquote(name))
    return f"{before}{name}={HIDDEN}" if secret else found[0]


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if name in _ADDRESSES:
            for address in value.split(","):
                yield from _in_address(address.strip())
        elif _SECRET_NAME.search(name):
            yield value
            # Headers are name=value,name=value with values in percent encoding.
            yield from (part.partition("=")[2] for part in value.split(",") if "=" in part)


def _in_address(address: str) -> Iterator[str]:
    """The secrets of a URL that may be malformed: as they are, and in parts.

    A parser of the URL may end the password at a character that should have been escaped.
    """
    scheme, separator, rest = address.partition("://")
    rest = rest if separator else scheme
    who, at, where = rest.rpartition("@")
    user, _, password = (who if at else rest).partition(":")
    if not at and re.match(r"\d+(/|\?|$)", password):
        password = ""  # it is the port
    common = {user, where.partition("/")[2].partition("?")[0]}
    fields = [part.partition("=") for part in re.split(r"[?&\s]", rest)]
    values = [value for name, _, value in fields if _SECRET_FIELD.search(unquote(name))]
    for secret in (password, *values):
        for part in (secret, *re.split(r"[#/?@:\[\]]", secret)):
            if part not in common:
                yield part.strip("'")


@cache
def _known(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """A pattern of the secrets, in all the spellings in which they are quoted; None if none."""
    spellings = {
        spelling
        for secret in secrets
        for spelling in (secret, unquote(secret), ascii(secret)[1:-1])
        if len(spelling) >= _LEAST
    }
    longest_first = sorted(spellings, key=len, reverse=True)
    patterns = [
        re.escape(s) if len(s) >= _CERTAIN else rf"(?<!\w){re.escape(s)}(?!\w)"
        for s in longest_first
    ]
    return re.compile("|".join(patterns)) if patterns else None
