"""Templates and the values on a page. Everything is escaped unless a template says otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from marco_search import __version__
from marco_search.render.layout import (
    STOP_REASONS,
    children_of,
    label,
    score,
    short_id,
    to_draw,
    unsure,
    weighting,
)
from marco_search.store.reads.job_record import TreeRow
from marco_search.store.reads.queries import LOW_QUANTILE, NARROW_SHARE

HERE = Path(__file__).resolve().parent
STATIC = HERE / "static"


@cache
def templates() -> Environment:
    """The console's templates."""
    found = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
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
    }
    found.globals |= {
        "version": __version__,
        "low_quantile": LOW_QUANTILE,
        "narrow_share": NARROW_SHARE,
        "can_leave": False,
    }
    return found


def page(name: str, **values: Any) -> str:
    """A template as HTML."""
    return templates().get_template(name).render(**values)


def moment(at: datetime | None) -> str:
    """A time to the second, in UTC; a dash for none."""
    return "–" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that fits."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def compact(detail: dict[str, Any]) -> str:
    """An event's detail on one line: "worker a, round 3"."""
    shown = (
        json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
        for value in detail.values()
    )
    return ", ".join(f"{name} {value}" for name, value in zip(detail, shown, strict=True))


def outline(nodes: Sequence[TreeRow], winning: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The tree as a nested list, best first: for screen readers, print, and without scripts.

    As in the terminal a chain stays on one level, so the list is as deep as there are choices.
    Before an item a list opens, or `closes` lists close.
    """
    nodes, winning = to_draw(nodes, winning)
    on_path = frozenset(winning)
    children = children_of(nodes, on_path)
    stack = [(node, 1, False) for node in nodes[:1]]
    level = 0
    while stack:
        node, wanted, choice = stack.pop()
        yield {
            "node": node,
            "label": label(node.action, node.text),
            "unsure": unsure(children[node.node_id]),
            "wins": node.node_id in on_path,
            "opens": wanted > level,
            "closes": max(0, level - wanted),
            "choice": choice,
        }
        level = wanted
        below = children[node.node_id]
        several = len(below) > 1
        stack += [(child, wanted + several, several) for child in reversed(below)]
