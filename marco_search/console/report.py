"""One job as one HTML file that works anywhere: no request leaves it, not even from a browser.

Scripts and styles are the console's own, put inline; a policy in the file allows exactly
these, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from marco_search.audit.findings import JobReport
from marco_search.console.outline import outline
from marco_search.console.rendering import STATIC, page
from marco_search.render.document import document
from marco_search.render.vocabulary import Vocabulary
from marco_search.store.reads.job_record import JobRecord, NodeTokens

# In the order in which they are needed: joined they are one module.
MODULES = (
    "tree.js",
    "drawing.js",
    "tokens.js",
    "panel.js",
    "playback.js",
    "explorer.js",
    "file.js",
)
_IMPORT = re.compile(r"^import\s[^;]*?;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|class|const)", re.MULTILINE)
# What could end the island or start another element, and line ends that old parsers choke on.
_ESCAPES = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def html_file(
    record: JobRecord,
    tokens: Mapping[int, NodeTokens],
    vocabulary: Vocabulary,
    verified: JobReport | None = None,
) -> str:
    """The whole file. `verified`: what checking the job against the chain gave."""
    style = (STATIC / "console.css").read_text()
    scripts = {
        "theme": (STATIC / "theme.js").read_text(),
        "library": (STATIC / "vendor" / "d3.min.js").read_text(),
        "module": bundle(),
    }
    allowed = " ".join(_hash(text) for text in scripts.values())
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return page(
        "file.html",
        record=record,
        job=record.job,
        verified=verified,
        outline=outline(record.nodes, record.winning_path),
        policy=policy,
        style=Markup(style),
        scripts={name: Markup(text) for name, text in scripts.items()},
        island=Markup(island(document(record, tokens, vocabulary, verified))),
        written_at=datetime.now(UTC),
    )


def island(data: Any) -> str:
    """JSON that can stand inside a script element, whatever texts it holds."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def bundle() -> str:
    """The console's modules as one: without their imports and exports they share one scope."""
    texts = ((STATIC / name).read_text() for name in MODULES)
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)


def _hash(text: str) -> str:
    """The source expression that allows exactly this inline text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
