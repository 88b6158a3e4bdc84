"""The words of docs/results.md around the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marco_search.evaluation.report import PAIRED_HEAD, markdown_paired, table
from marco_search.evaluation.statistics import paired
from ops.bench.paper_figures import FLAT, WINNER, Language, at_equal_tokens
from ops.bench.paper_goals import Goal
from ops.bench.paper_runs import FEW, SEED


def head(languages: Mapping[str, Language]) -> str:
    """What was run, how, and what it does and does not show."""
    rollouts = next(iter(languages.values())).rollouts
    minutes = sum(sum(lang.seconds.values()) for lang in languages.values()) / 60
    return f"""# The paper's table in miniature

`make paper-table ARGS="--rollouts {rollouts}"` makes this page: the strategies of Marco-o1
(arXiv 2411.14405) and honest baselines on the pocket model's held-out word problems. Seed
{SEED}. The runs took at least {minutes:.0f} minutes of wall clock, one process a language, on 2
cores that much else was using; each goes on where it stopped when it is started again.

**What carries over and what does not.** The pocket model has 2 million parameters and was
trained from scratch on generated problems. Its data was built so that confidence is
informative: a step is either a short jump that often slips or a longer calculation in parts
that seldom does, and after the reflection phrase it always calculates in parts. So its margins
say nothing about other models. The method and the harness carry over.

- Test@1: accuracy of the chosen answer, with its 95 % Wilson interval.
- Test@N: solved at least once in N guesses. For independent samples the unbiased estimate over
  {rollouts} separate samples. For a tree: one of the first N rollouts of one tree, which share
  prefixes and so are not separate guesses. `auto` may have stopped before.
- Tokens are generated tokens per problem, means. Prefilled are prompt tokens that had to be
  computed, cached those from the prefix cache. Seconds are from a search's first round to its
  last while other searches shared the engine.
- AUROC: the answer's confidence against its correctness, over problems.
- Baselines are given at least as many generated tokens as `{WINNER}` (the least n that does).
  Trees have {rollouts} rollouts; a row beside has their first {min(rollouts, FEW)}. n is the number
  of samples. `auto-whole` is `auto` that does not stop early.

![Accuracy over generated tokens](plots/accuracy-over-tokens.png)

![Calibration of single samples](plots/calibration.png)"""


def comparisons(language: Language) -> str:
    """Trees against the baselines, at equal generated tokens, problem by problem."""
    lines = []
    for tree in reversed(language.trees):
        baselines = list(FLAT) if tree == WINNER else ["self-consistency", "best-of-n"]
        for name, point, found in at_equal_tokens(language, tree, baselines):
            what = (
                f"{tree} less {name} (n = {point.rollouts}, {point.tokens_per_problem:.0f} tokens)"
            )
            lines.append(markdown_paired(what, found))
    if not lines:
        return "No comparison: the runs are not complete."
    said = "At equal generated tokens (the baseline gets at least as many), paired bootstrap:"
    return f"{said}\n\n{table(PAIRED_HEAD, lines)}{_reflecting_greedily(language)}"


def _reflecting_greedily(language: Language) -> str:
    """The strongest rival: one greedy thought that is always made to reflect."""
    rival, mine = language.curve("cot-reflect"), language.curve(WINNER)
    if not rival or not mine:
        return ""
    found = paired(mine[-1].right, rival[-1].right)
    saved = 1 - mine[-1].tokens_per_problem / rival[-1].tokens_per_problem
    return (
        f"\n\n**The strongest rival** is `cot-reflect`, one greedy thought that is always made to "
        f"reflect: {100 * rival[-1].accuracy:.1f} % with "
        f"{rival[-1].tokens_per_problem:.0f} tokens. "
        f"`{WINNER}` begins the same way, reflects only where it is unsure and goes on where that "
        f"did not settle it: {100 * found.difference:+.1f} points "
        f"({100 * found.low:+.1f} to {100 * found.high:+.1f}), {100 * -saved:+.0f} % tokens."
    )


def goals_section(goals: Sequence[Goal]) -> str:
    """Each goal with what was measured."""
    if not goals:
        return "## Goals\n\nThe runs are not complete."
    rows = [(g.text, "reached" if g.reached else "**not reached**", g.measured) for g in goals]
    return "## Goals\n\n" + table(("Goal", "", "measured"), rows)


def texts_section(texts: Mapping[str, Any]) -> str:
    """Translation and open-ended jobs."""
    parts = []
    if "translation" in texts:
        found = texts["translation"]
        rows = [
            (s["strategy"], f"{s['chrf']:.1f}", f"{100 * s['exact']:.1f}",
             f"{100 * s['low']:.1f} to {100 * s['high']:.1f}", f"{s['distinct']:.1f}",
             f"{s['tokens_per_problem']:.0f}")
            for s in found["strategies"]
        ]  # fmt: skip
        cells = ("Strategy", "chrF", "exact %", "95 %", "distinct answers", "tokens")
        parts.append(
            f"## Translation: {found['n']} held-out colloquial phrases, Chinese to English\n\n"
            "The pocket model only knows its phrase book and templates: the held-out sentences "
            "are new combinations of known parts. What this shows is that the harness works; "
            "point it at a real model (MARCO_RUNTIME) for real translation. Exact: equal to an "
            "accepted translation, case and punctuation aside. "
            f"chrF: sacreBLEU, `{found['signature']}`.\n\n{table(cells, rows)}"
        )
    if "open_ended" in texts:
        parts.append(_open_ended(texts["open_ended"]))
    return "\n\n".join(parts) or "## Translation\n\nThe run is not complete."


def _open_ended(found: Mapping[str, Any]) -> str:
    rows = [
        (s["strategy"], f"{s['distinct']:.1f}", f"{s['diversity']:.2f}", f"{s['merged']:.1f}",
         f"{s['tokens_per_problem']:.0f}")
        for s in found["strategies"]
    ]  # fmt: skip
    cells = ("Strategy", "distinct solutions", "diversity", "near-duplicates merged", "tokens")
    example = "\n".join(
        f"{i}. {a['text']} (confidence {a['confidence']:.3f}, {a['votes']} rollouts)"
        for i, a in enumerate(found["example"]["answers"], start=1)
    )
    return (
        f"## Open-ended: {found['n']} prompts\n\n"
        "Two outputs are near-duplicates, and one solution, when the Jaccard index of their "
        "character trigrams is at least 0.6. Diversity: mean distance (1 - index) between a "
        "prompt's distinct solutions.\n\n"
        f'{table(cells, rows)}\n\nFor example, "{found["example"]["prompt"]}":\n\n{example}'
    )


def separate() -> str:
    """A line between the languages and what is said of both."""
    return "---"
