"""The model card of a fine-tuned model, README.md of its folder: card.md.j2 filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ops.finetune.config import Config

_METHODS = {"sft": "supervised fine-tuning", "dpo": "DPO (Rafailov et al. 2023)"}


def text(
    config: Config,
    training: Mapping[str, Any],
    manifests: Sequence[Mapping[str, Any]],
    trained: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
) -> str:
    """Markdown.

    Args:
        config: What was asked for.
        training: The content of marco_training.json.
        manifests: Of the data sets, in order.
        trained: What train.py reports.
        results: By set, {"before": report, "after": report} of `marco eval`; one may be missing.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True)
    made.filters["json"] = json.dumps
    tools = {"methods": _METHODS, "accuracy": _accuracy, "difference": _difference}
    return made.get_template("card.md.j2").render(
        tools,
        config=config,
        training=training,
        manifests=manifests,
        trained=trained,
        results=results,
    )


def _accuracy(report: Mapping[str, Any] | None) -> str:
    if not report:
        return "not measured"
    (found,) = report["results"].values()
    return f"{found['accuracy']:.3f} [{found['low']:.3f}, {found['high']:.3f}], n = {found['n']}"


def _difference(report: Mapping[str, Any] | None) -> str:
    if not report or not report.get("against"):
        return "not measured"
    found = report["against"]["accuracy"]
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
