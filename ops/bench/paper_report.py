"""Writes docs/results.md, docs/results.json and the plots from what the runs have kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from marco_search.evaluation.plots import accuracy_over_tokens, calibration_plot
from marco_search.evaluation.report import bins_of, markdown_rows
from ops.bench.paper_figures import FLAT, WINNER, Language, gather, rows
from ops.bench.paper_goals import goals
from ops.bench.paper_runs import SEED, SETS
from ops.bench.paper_sections import comparisons, goals_section, head, separate, texts_section
from ops.bench.paper_texts import read_texts

PLOTTED = ("cot", "cot-reflect", *list(FLAT)[:3], "step", "mini-step-32", WINNER)


def write_report(folder: Path, docs: Path, count: int, rollouts: int) -> list[Path]:
    """The files written. Runs that are not complete are left out and named."""
    docs.mkdir(parents=True, exist_ok=True)
    languages = {name: gather(folder, name, count, rollouts) for name in SETS}
    texts = read_texts(folder)
    markdown, data = docs / "results.md", docs / "results.json"
    markdown.write_text(_markdown(languages, texts), encoding="utf-8")
    shown = json.dumps(_data(languages, texts), ensure_ascii=False, indent=1)
    data.write_text(shown + "\n", encoding="utf-8")
    return [markdown, data, *_plots(languages, docs / "plots")]


def _markdown(languages: Mapping[str, Language], texts: Mapping[str, Any]) -> str:
    parts = [head(languages)]
    for language in languages.values():
        title = {"en": "English", "zh": "Chinese"}[language.name]
        parts.append(f"## {title}: {len(language.problems)} held-out problems")
        parts.append(markdown_rows(rows(language)))
        parts.append(comparisons(language))
        if language.missing:
            names = ", ".join(language.missing)
            parts.append(f"Not complete, for want of time, and so not shown: {names}.")
    parts.append(separate())
    parts.append(goals_section(goals(languages)))
    parts.append(texts_section(texts))
    return "\n\n".join(parts) + "\n"


def _data(languages: Mapping[str, Language], texts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "command": f'make paper-table ARGS="--rollouts {languages["en"].rollouts}"',
        "seed": SEED,
        "seconds": {n: dict(lang.seconds) for n, lang in languages.items()},
        "results": {
            name: {r.strategy: r.to_json() for r in rows(language)}
            for name, language in languages.items()
        },
        "curves": {
            name: {
                strategy: [
                    [p.rollouts, round(p.tokens_per_problem, 1), round(p.accuracy, 4)]
                    for p in language.curve(strategy)
                ]
                for strategy in (*FLAT, *language.trees)
            }
            for name, language in languages.items()
        },
        "goals": [asdict(g) for g in goals(languages)],
        "texts": dict(texts),
    }


def _plots(languages: Mapping[str, Language], folder: Path) -> list[Path]:
    complete = {n: lang for n, lang in languages.items() if lang.traces}
    if not complete:
        return []
    curves = {
        f"{SETS[n]}, n = {len(lang.problems)}": {
            s: points for s in PLOTTED if (points := lang.curve(s))
        }
        for n, lang in complete.items()
    }
    bins = {
        SETS[n]: bins_of(lang.traces["samples"], lang.grader)
        for n, lang in complete.items()
        if "samples" in lang.traces
    }
    files = accuracy_over_tokens(curves, folder / "accuracy-over-tokens")
    return files + (calibration_plot(bins, folder / "calibration") if bins else [])
