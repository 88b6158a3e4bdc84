"""Plots of a report, each as PNG and as SVG. Needs matplotlib (the "eval" extra).

matplotlib rather than SVG written by hand: it also makes the PNG, and it is well kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marco_search.errors import InvalidSettings
from marco_search.evaluation.curves import Point
from marco_search.evaluation.statistics import Bin, wilson

DOTS = {"dpi": 110}
_COLOURS = ("#1b6ca8", "#d1495b", "#2a9d62", "#8d5a97", "#c98a00", "#5c6b73", "#e377c2", "#17becf")


def _figure(panels: int) -> tuple[Any, Any]:
    try:
        import matplotlib
    except ImportError:
        raise InvalidSettings(
            "plots need matplotlib: run `make install`, or leave --plots out"
        ) from None
    matplotlib.use("Agg")
    # The same input gives the same SVG file.
    matplotlib.rcParams["svg.hashsalt"] = "marco"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=(5.6 * panels, 4.2), squeeze=False)
    return figure, axes[0]


def _save(figure: Any, stem: Path) -> list[Path]:
    from matplotlib import pyplot

    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    figure.savefig(files[0], **DOTS)
    figure.savefig(files[1], metadata={"Date": None})
    pyplot.close(figure)
    return files


def accuracy_over_tokens(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], stem: Path
) -> list[Path]:
    """One panel a set, one line a strategy; a strategy of one point is a dot with its interval.

    Returns the files written: `stem` with .png and .svg.
    """
    figure, axes = _figure(len(panels))
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for i, (name, points) in enumerate(curves.items()):
            colour = _COLOURS[i % len(_COLOURS)]
            x = [p.tokens_per_problem for p in points]
            y = [100 * p.accuracy for p in points]
            if len(points) == 1:
                low, high = wilson(sum(points[0].right), len(points[0].right))
                # Rounding must not make a length negative.
                spread = [[max(0.0, y[0] - 100 * low)], [max(0.0, 100 * high - y[0])]]
                axis.errorbar(x, y, yerr=spread, fmt="o", capsize=3, color=colour, label=name)
            else:
                bounds = [wilson(sum(p.right), len(p.right)) for p in points]
                axis.plot(x, y, marker=".", markersize=4, color=colour, label=name)
                axis.fill_between(
                    x,
                    [100 * low for low, _ in bounds],
                    [100 * high for _, high in bounds],
                    color=colour,
                    alpha=0.08,
                    linewidth=0,
                )
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_title(title)
        axis.set_xlabel("generated tokens per problem")
        axis.set_ylabel("accuracy, % (bands: 95 %)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    return _save(figure, stem)


def calibration_plot(panels: Mapping[str, Sequence[Bin]], stem: Path) -> list[Path]:
    """Accuracy over confidence of single rollouts, in bins of equal size, one panel a set."""
    figure, axes = _figure(len(panels))
    for axis, (title, bins) in zip(axes, panels.items(), strict=True):
        x = [b.confidence for b in bins]
        axis.plot(x, [b.accuracy for b in bins], marker="o", color=_COLOURS[0], label="rollouts")
        least = min([*x, 0.9])
        axis.plot([least, 1], [least, 1], "--", color="grey", label="calibrated")
        axis.set_ylim(0, 1.02)
        axis.set_title(title)
        axis.set_xlabel("confidence v = mean c_i")
        axis.set_ylabel("share of right answers")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return _save(figure, stem)
