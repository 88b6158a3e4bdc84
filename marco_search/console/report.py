"""One job as a file: html, which works anywhere and loads nothing, or a format of `render`.

Scripts and styles of the HTML file are the console's own, put inline; a policy in the file
allows exactly these, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from marco_search.audit.findings import JobReport
from marco_search.console.reader import Reader
from marco_search.console.rendering import STATIC, page, tree_rows
from marco_search.render.document import cards, document
from marco_search.render.drawings import MAX_NODES, dot, mermaid, svg
from marco_search.render.layout import to_draw, visible_nodes
from marco_search.store.reads.job_record import JobRecord, NodeTokens

# In the order in which they are needed: joined they are one module.
_MODULES = ("tree", "tokens", "panel", "playback", "explorer", "file")
_IMPORT = re.compile(r"^import\s[^;]*?;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|class|const)", re.MULTILINE)


def render(
    reader: Reader, job_id: UUID, name: str, *, limit: int | None = None, depth: int | None = None
) -> str:
    """The job as html, svg, dot, mermaid or json. Raises JobNotFound.

    `limit` and `depth` cut a drawing as in the terminal; None: everything, as far as the
    format goes. html and json are always whole.
    """
    record = reader.record(job_id)
    if name in ("html", "json"):
        verified = reader.verified(job_id) if record.job.final else None
        if name == "html":
            return html_file(record, reader.tokens(job_id), verified)
        data = document(record, reader.tokens(job_id), verified)
        return json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    nodes, winning = to_draw(record.nodes, record.winning_path)
    if nodes:
        most = MAX_NODES if name == "mermaid" and limit is None else limit
        keep = visible_nodes(nodes, winning, most, depth)
        nodes = tuple(node for node in nodes if node.node_id in keep)
        winning = tuple(i for i in winning if i in keep)
    if name == "mermaid":
        return mermaid(nodes, winning)
    return (svg if name == "svg" else dot)(nodes, winning, record.job.subject)


def html_file(
    record: JobRecord, tokens: Mapping[int, NodeTokens], verified: JobReport | None = None
) -> str:
    """The whole file. `verified`: what checking the job against the chain gave."""
    style = (STATIC / "console.css").read_text()
    scripts = {
        "theme": (STATIC / "theme.js").read_text(),
        "module": bundle(),
    }
    allowed = " ".join(_hash(text) for text in scripts.values())
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    data = document(record, tokens, verified) | {"nodes": cards(record)}
    return page(
        "file.html",
        record=record,
        job=record.job,
        verified=verified,
        rows=tree_rows(record.nodes, record.winning_path),
        policy=policy,
        style=Markup(style),
        scripts={name: Markup(text) for name, text in scripts.items()},
        island=htmlsafe_json_dumps(data, separators=(",", ":")),
        written_at=datetime.now(UTC),
    )


def bundle() -> str:
    """The console's modules as one: without their imports and exports they share one scope."""
    texts = ((STATIC / f"{name}.js").read_text() for name in _MODULES)
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)


def _hash(text: str) -> str:
    """The source expression that allows exactly this inline text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
