"""Plots of evaluations, for the pages of docs/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marco_search.evaluation.grading import Point
from marco_search.evaluation.statistics import wilson

_COLOURS = ("#1b6ca8", "#d1495b", "#2a9d62", "#8d5a97", "#c98a00", "#5c6b73", "#e377c2", "#17becf")


def accuracy_over_tokens(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], stem: Path
) -> list[Path]:
    """A figure with one panel a title, one line a strategy, as `stem`.png and .svg; these files."""
    import matplotlib  # it takes a second

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "marco"  # the same input gives the same SVG file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.2), squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        _draw(axis, curves)
        axis.set_title(title)
        axis.grid(alpha=0.3)
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    figure.savefig(files[0], dpi=110)
    figure.savefig(files[1], metadata={"Date": None})
    pyplot.close(figure)
    return files


def _draw(axis: Any, curves: Mapping[str, Sequence[Point]]) -> None:
    """One line a strategy; a strategy of one point is a dot with its interval."""
    for i, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        x = [p.tokens_per_problem for p in curve]
        y = [100 * p.accuracy for p in curve]
        bounds = [wilson(sum(p.right), len(p.right)) for p in curve]
        low, high = ([100 * bound for bound in side] for side in zip(*bounds, strict=True))
        if len(curve) == 1:
            # Rounding must not make a length negative.
            spread = [[max(0.0, y[0] - low[0])], [max(0.0, high[0] - y[0])]]
            axis.errorbar(x, y, yerr=spread, fmt="o", capsize=3, color=colour, label=name)
        else:
            axis.plot(x, y, marker=".", markersize=4, color=colour, label=name)
            axis.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("generated tokens per problem")
    axis.set_ylabel("accuracy, % (bands: 95 %)")
    axis.legend(fontsize=8, loc="lower right")
