"""Templates and the values on a page. Everything is escaped unless a template says otherwise.

One job is also a file: html, which works anywhere and loads nothing, or a format of `render`.
Scripts and styles of the HTML file are the console's own, put inline; a policy in the file
allows exactly these, by their hashes.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from operator import or_
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from marco_search import __version__
from marco_search.audit.findings import JobReport
from marco_search.console.reader import Reader
from marco_search.jobs import SearchOptions
from marco_search.kinds import subject_fields
from marco_search.render.document import cards, document
from marco_search.render.drawings import MAX_NODES, dot, mermaid, svg
from marco_search.render.layout import (
    STOP_REASONS,
    Layout,
    instead,
    labels,
    places,
    score,
    short_id,
    unsure,
    visible_nodes,
    weighting,
)
from marco_search.store.reads.job_record import JobRecord, NodeTokens, TreeRow
from marco_search.store.reads.lineage import MOST_PAIRS
from marco_search.store.reads.queries import LOW_QUANTILE, NARROW_SHARE, JobStatus
from marco_search.text import escaped

HERE = Path(__file__).resolve().parent
STATIC = HERE / "static"
# In the order in which they are needed: joined they are one module.
_MODULES = ("tree", "tokens", "panel", "playback", "explorer", "file")
_IMPORT = re.compile(r"^import\s[^;]*?;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|class|const)", re.MULTILINE)


@cache
def templates() -> Environment:
    """The console's templates."""
    found = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "short": short_id,
        "score": score,
        "percent": lambda value: "" if value is None else f"{100 * value:.0f} %",
        "weighting": lambda vote: weighting(*vote),
        "moment": moment,
        "duration": duration,
        "number": "{:,}".format,
        "why": lambda reason: STOP_REASONS.get(reason, reason),
        "pretty": lambda data: json.dumps(data, ensure_ascii=False, indent=2),
        "compact": compact,
        "given": given,
        "zipped": zip,
        "combined": or_,
        "traces": lambda detail: [v for v in detail.values() if _is_trace(v)],
    }
    found.globals |= {
        "version": __version__,
        "low_quantile": LOW_QUANTILE,
        "narrow_share": NARROW_SHARE,
        "most_pairs": MOST_PAIRS,
        "can_leave": False,
    }
    return found


def page(name: str, **values: Any) -> str:
    """A template as HTML."""
    return templates().get_template(name).render(**values)


def shown(value: Any) -> Any:
    """A value as a page has it: characters that would turn the text around it are spelt out.

    Markup is left as it is: its parts have been here. So has what is not text.
    """
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def csv_lines(jobs: Iterable[JobStatus]) -> Iterator[str]:
    """The jobs as CSV (RFC 4180), a column for each field, a header first."""
    names = list(JobStatus.model_fields)
    writer = csv.writer(SimpleNamespace(write=str))  # `writerow` returns what that does
    for row in chain([names], ([_cell(getattr(job, name)) for name in names] for job in jobs)):
        yield writer.writerow(row)


def _cell(value: Any) -> Any:
    """What a spreadsheet shows as it is: text that it would take for a formula gets a quote
    before it (OWASP, CSV injection). Numbers stay numbers.
    """
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


_FORMULA = re.compile(r"(?![+-]?[\d.,]+$)[=+\-@\t\r\n＝＋－＠]")


def moment(at: datetime | None) -> str:
    """A time to the second, in UTC; a dash for none."""
    return "–" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that fits."""
    if seconds is None:
        return "–"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


_ELSEWHERE = {"kind", "options", "metadata", "system_prompt", "priority", *subject_fields()}
_ELSEWHERE |= {"deadline", "expires_in_s"}


def given(payload: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a request says that has no place of its own on the page: fields of its kind (the
    languages of a translation), and the options that are not at their defaults.
    """
    usual = SearchOptions().model_dump(mode="json")
    options = (payload.get("options") or {}).items()
    own = ((name, value) for name, value in payload.items() if name not in _ELSEWHERE)
    return [
        *((name, value) for name, value in own if value is not None),
        *((name, value) for name, value in options if value != usual.get(name)),
    ]


def compact(detail: dict[str, Any]) -> str:
    """An event's detail but for tracebacks, on one line: "worker a, round 3"."""
    texts = {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in detail.items()
        if not _is_trace(value)
    }
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def _is_trace(value: object) -> bool:
    """Whether it has lines that must stay lines: a traceback."""
    return isinstance(value, str) and "\n" in value.strip()


def tree_rows(nodes: Sequence[TreeRow], winning: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The tree as a nested list, best first.

    As in the terminal a chain stays on one level, so the list is as deep as there are choices.
    Before a row lists open, or `closes` lists close; `note` is what the model was unsure of there.
    """
    tree = Layout(nodes, winning)
    drawn = {node.node_id: node for node in tree.nodes}
    siblings = {node.node_id: below for below in tree.children.values() for node in below}
    label_of = labels(tree)
    level = 0
    for node_id, place in places(tree).items():
        beside = siblings.get(node_id, tree.nodes[:1])
        yield {
            "node": drawn[node_id],
            "label": label_of[node_id],
            "note": unsure(beside) if beside[0].node_id == node_id else None,
            "fork": (fork := drawn[node_id].fork) and instead(fork),
            "wins": node_id in tree.winning,
            "opens": place.column + 1 > level,
            "closes": max(0, level - place.column - 1),
            "choice": len(beside) > 1,
        }
        level = place.column + 1


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
    tree = Layout(record.nodes, record.winning_path)
    if tree.nodes:
        most = MAX_NODES if name == "mermaid" and limit is None else limit
        tree = tree.only(visible_nodes(tree, most, depth))
    if name == "mermaid":
        return mermaid(tree)
    return (svg if name == "svg" else dot)(tree, record.job.subject)


def html_file(
    record: JobRecord, tokens: Mapping[int, NodeTokens], verified: JobReport | None = None
) -> str:
    """The whole file. `verified`: what checking the job against the chain gave."""
    style = (STATIC / "console.css").read_text()
    scripts = {
        "theme": (STATIC / "theme.js").read_text(),
        "module": bundle(),
    }
    allowed = " ".join(_allowed(text) for text in scripts.values())
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_allowed(style)}; "
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


def _allowed(text: str) -> str:
    """The source expression that allows exactly this inline text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
