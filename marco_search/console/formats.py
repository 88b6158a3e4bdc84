"""One job in each of the formats that `marco show --format` offers."""

from __future__ import annotations

import json
from uuid import UUID

from marco_search.cli.render.prune import shown_nodes
from marco_search.console.reader import Reader
from marco_search.console.report import html_file
from marco_search.render.document import document
from marco_search.render.dot import dot
from marco_search.render.mermaid import MAX_NODES, mermaid
from marco_search.render.svg import svg


def render(
    reader: Reader, job_id: UUID, name: str, *, limit: int | None = None, depth: int | None = None
) -> str:
    """The job as html, svg, dot, mermaid or json.

    `limit` and `depth` cut a drawing as in the terminal; None: everything, as far as the
    format goes. html and json are always whole. Raises JobNotFound.
    """
    record = reader.record(job_id)
    if name in ("html", "json"):
        tokens, vocabulary = reader.all_tokens(job_id)
        verified = reader.verified(job_id) if record.job.final else None
        if name == "html":
            return html_file(record, tokens, vocabulary, verified)
        data = document(record, tokens, vocabulary, verified)
        return json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    winning, nodes = record.winning_path, record.nodes
    if nodes:
        most = MAX_NODES if name == "mermaid" and limit is None else limit
        keep = shown_nodes(nodes, frozenset(winning), most, depth)
        nodes = tuple(node for node in nodes if node.node_id in keep)
        winning = tuple(i for i in winning if i in keep)
    title = record.job.subject
    if name == "svg":
        return svg(nodes, winning, title)
    return dot(nodes, winning, title) if name == "dot" else mermaid(nodes, winning)
