"""What a runtime says of itself, as it may be logged and stored: short, plain, without the key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from urllib.parse import quote

from marco_search.text import HIDDEN, one_line, redacted

_LONGEST = 500  # characters
_HEADER = re.compile(r"""(?i)(authorization\W{1,8})(?:(?:bearer|basic)\s+)?[^\s"',;}\\]+""")


def quoting(key: str | None) -> Callable[[str], str]:
    """The function to put such text through. `key` is what the server is given to let us in."""
    # As it is, in JSON, and in an address.
    forms = {key, json.dumps(key)[1:-1], quote(key, safe="")} if key else set()

    def quoted(text: str) -> str:
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, HIDDEN)
        text = one_line(redacted(_HEADER.sub(rf"\1{HIDDEN}", text)))
        return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."

    return quoted
