"""Templates, and how values read on a page. Everything is escaped unless a template says so."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from marco_search import __version__
from marco_search.cli.render.jobs import short_id
from marco_search.cli.render.result import WHY, weighting
from marco_search.store.reads.listing import LOW_QUANTILE, NARROW_SHARE

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
        "percent": percent,
        "weighting": lambda vote: weighting(*vote),
        "moment": moment,
        "duration": duration,
        "number": number,
        "why": lambda reason: WHY.get(reason, reason),
        "pretty": lambda data: json.dumps(data, ensure_ascii=False, indent=2),
        "compact": compact,
    }
    found.globals |= {
        "version": __version__,
        "low_quantile": LOW_QUANTILE,
        "narrow_share": NARROW_SHARE,
    }
    return found


def page(name: str, **values: Any) -> str:
    """A template as HTML."""
    return templates().get_template(name).render(**values)


def score(value: float | None) -> str:
    """A confidence with three decimals; a dash for none."""
    return "–" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A part in whole percents; "" for none."""
    return "" if value is None else f"{100 * value:.0f} %"


def number(value: float) -> str:
    """A count with thousands set off."""
    return f"{value:,}"


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
    """What an event says, on one line: "worker a, round 3"."""
    shown = (
        json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
        for value in detail.values()
    )
    return ", ".join(f"{name} {value}" for name, value in zip(detail, shown, strict=True))
