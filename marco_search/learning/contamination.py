"""Contamination: samples that hold problems of a set that models are evaluated on.

A problem stands in a message if all its numbers do and at least SHARE of its n-grams (runs of N
tokens; of a shorter problem the whole). So a problem that is quoted, cut short or rephrased in
places is found, and one made from the same template with other numbers is not. One of fewer than
SHORT tokens ("Why?") must be the whole message.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from marco_search.evaluation.data_sets import load
from marco_search.learning.duplicates import ngram_hashes, numbers, tokens
from marco_search.learning.filters import Rule
from marco_search.learning.samples import Pair, Sample

N, SHARE, SHORT = 8, 0.5, 4


def rules(sets: Sequence[str]) -> dict[str, Rule]:
    """The rule "contaminated", against sets as `marco eval` names them; none without sets.

    Memory is in proportion to the sets, not to the samples. Raises InvalidDataSet.
    """
    if not sets:
        return {}
    problems = [
        (f"problem {number} of {name}", problem.job.subject)
        for name in sets
        for number, problem in enumerate(load(name), start=1)
    ]
    parameters = {"sets": list(sets), "problems": len(problems), "n": N, "share": SHARE}
    return {"contaminated": Rule(Problems(problems).reason, parameters)}


class Problems:
    """The n-grams of problems."""

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        """`problems`: what to call each, and its text."""
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._numbers: list[set[str]] = []
        self._short: dict[tuple[str, ...], str] = {}
        # Length of the n-grams, N but for shorter problems, to n-gram to the problems that have it.
        self._indexes: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for name, text in problems:
            words = tokens(text)
            if len(words) < SHORT:
                self._short[tuple(words)] = name
                continue
            grams = ngram_hashes(words, N).tolist()
            for gram in grams:
                self._indexes[min(N, len(words))][gram].append(len(self._names))
            self._names.append(name)
            self._sizes.append(len(grams))
            self._numbers.append(set(numbers(words)))

    def reason(self, row: Sample | Pair) -> str | None:
        """Which problem stands in a row, and how much of it; None: none does."""
        for text in _texts(row):
            words = tokens(text)
            if words and (name := self._short.get(tuple(words))):
                return f"it is {name}"
            said = set(numbers(words))
            for problem, hits in self._hits(words).items():
                share = hits / self._sizes[problem]
                if share >= SHARE and self._numbers[problem] <= said:
                    return f"{share:.0%} of the n-grams of {self._names[problem]}"
        return None

    def _hits(self, words: Sequence[str]) -> Counter[int]:
        """How many of its n-grams stand in a text, for each problem that has any there."""
        return Counter(
            problem
            for n, index in self._indexes.items()
            if n <= len(words)
            for gram in ngram_hashes(words, n).tolist()
            for problem in index.get(gram, ())
        )


def _texts(row: Sample | Pair) -> Iterable[str]:
    messages = (
        row.messages if isinstance(row, Sample) else (*row.prompt, *row.chosen, *row.rejected)
    )
    return (message["content"] for message in messages)
