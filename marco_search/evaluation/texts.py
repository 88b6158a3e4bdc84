"""Translations and open-ended answers: chrF, exact match, and how different the best n are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from marco_search.errors import InvalidSettings
from marco_search.kinds.answers.fold import text_key
from marco_search.kinds.open_ended import similarity, trigrams


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScores:
    """Scores of one output a problem."""

    n: int
    chrf: float  # corpus chrF, 0 to 100 (sacreBLEU's default: chrF2)
    exact: float  # share equal to an accepted text, case and punctuation aside
    right: tuple[bool, ...]
    signature: str  # sacreBLEU's, so that the score can be compared


def score_texts(outputs: Sequence[str], accepted: Sequence[Sequence[str]]) -> TextScores:
    """Corpus scores of `outputs` against the accepted texts of each.

    Raises InvalidSettings where sacrebleu (the "eval" extra) is missing.
    """
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise InvalidSettings("chrF needs sacrebleu: run `make install`") from None
    longest = max(map(len, accepted), default=0)
    # sacreBLEU wants as many references for each; a repeated one changes nothing.
    streams = [[refs[min(i, len(refs) - 1)] for refs in accepted] for i in range(longest)]
    metric = CHRF()
    score = metric.corpus_score(list(outputs), streams)
    right = tuple(
        text_key(out) in {text_key(r) for r in refs}
        for out, refs in zip(outputs, accepted, strict=True)
    )
    return TextScores(
        n=len(outputs),
        chrf=score.score,
        exact=sum(right) / len(right) if right else 0.0,
        right=right,
        signature=str(metric.get_signature()),
    )


def diversity(outputs: Sequence[str]) -> float:
    """Mean distance of the outputs, pair by pair: 1 - Jaccard index of their trigrams.

    0.0 for fewer than two. The index counts as 0 where sizes alone rule near-duplicates out.
    """
    grams = [trigrams(text_key(o)) for o in outputs]
    pairs = [(a, b) for i, a in enumerate(grams) for b in grams[i + 1 :]]
    return sum(1 - similarity(a, b) for a, b in pairs) / len(pairs) if pairs else 0.0
