"""The goals that were set before measuring, and whether they are reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from marco_search.evaluation.curves import Point
from marco_search.evaluation.statistics import Paired, paired
from ops.bench.paper_figures import WINNER, Language, at_equal_tokens, saving

PAPER_MARGINS = {"en": 0.048, "zh": 0.112}
"""Best MCTS strategy less greedy CoT in the paper (90.4 - 85.6 and 82.4 - 71.2 points)."""
BASELINES = ("self-consistency", "best-of-n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One goal, for one language or for both."""

    text: str
    reached: bool
    measured: str


def goals(languages: Mapping[str, Language]) -> list[Goal]:
    """All goals whose runs are complete."""
    ready = [lang for lang in languages.values() if lang.curve(WINNER) and lang.curve("samples")]
    found = [g for lang in ready for g in (_over_greedy(lang),) if g]
    if len(ready) == len(languages):
        found += [_at_least_as_good(ready, name) for name in BASELINES]
        found.append(_clearly_better(ready))
    return found + [g for lang in ready for g in _half_the_tokens(lang)]


def _over_greedy(language: Language) -> Goal | None:
    greedy, mine = language.curve("cot"), language.curve(WINNER)
    if not greedy:
        return None
    gain, margin = paired(mine[-1].right, greedy[0].right), PAPER_MARGINS[language.name]
    return Goal(
        text=f"{language.name}: over greedy CoT by at least {100 * margin:.1f} points, "
        "the interval clear of 0",
        reached=gain.difference >= margin and gain.low > 0,
        measured=_points(gain),
    )


def _results(languages: list[Language], baseline: str) -> list[tuple[str, Point, Paired]]:
    return [
        (language.name, point, found)
        for language in languages
        for _, point, found in at_equal_tokens(language, WINNER, [baseline])
    ]


def _at_least_as_good(languages: list[Language], baseline: str) -> Goal:
    found = _results(languages, baseline)
    return Goal(
        text=f"At equal tokens at least as accurate as {baseline} on both languages",
        reached=all(r.difference >= 0 for _, _, r in found),
        measured="; ".join(f"{name}: {_points(r)}" for name, _, r in found),
    )


def _clearly_better(languages: list[Language]) -> Goal:
    """Better than both baselines on one language at least, each interval clear of 0."""
    by_language = {
        lang.name: [r for _, _, r in at_equal_tokens(lang, WINNER, BASELINES)] for lang in languages
    }
    clear = [name for name, results in by_language.items() if all(r.low > 0 for r in results)]
    return Goal(
        text="At equal tokens better than both on at least one language, "
        "the paired interval clear of 0",
        reached=bool(clear),
        measured=f"clear on: {', '.join(clear) or 'none'}",
    )


def _half_the_tokens(language: Language) -> Iterator[Goal]:
    """At the winner's accuracy, and at the best that the baseline comes to."""
    most = len(language.curve("self-consistency"))
    for at_best in (False, True):
        found = saving(language, at_best=at_best)
        whose = "self-consistency's best" if at_best else f"`{WINNER}`'s accuracy"
        never = found.baseline_tokens is None and found.tokens is not None
        yield Goal(
            text=f"{language.name}: half the tokens of self-consistency for the same accuracy, "
            f"{whose} ({100 * found.accuracy:.1f} %)",
            reached=never or (found.ratio is not None and found.ratio <= 0.5),
            measured=f"`{WINNER}` {_tokens(found.tokens)}, self-consistency up to n = {most} "
            f"{_tokens(found.baseline_tokens)}"
            + (f": {100 * found.ratio:.0f} %" if found.ratio is not None else ""),
        )


def _tokens(needed: float | None) -> str:
    return "does not reach it" if needed is None else f"{needed:.0f} tokens"


def _points(found: Paired) -> str:
    return (
        f"{100 * found.difference:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )
