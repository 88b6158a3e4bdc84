"""Open-ended jobs: several different solutions, each ranked.

Two outputs are the same solution if their normalised texts share most of their character
trigrams: Jaccard index |A and B| / |A or B| >= NEAR. Trigrams need no word boundaries, so
the rule is the same for Chinese. Texts that differ in a word count as one solution; a different
idea, or the same idea in entirely different words, counts as another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from marco_search.jobs import Job, Text
from marco_search.kinds.answers.normalization import text_answer, text_key
from marco_search.kinds.base import ExtractedAnswer, Kind

NEAR = 0.6
"""Minimum Jaccard index of near-duplicates."""


class OpenEndedJob(Job):
    """A prompt that several different answers may satisfy."""

    subject_field: ClassVar[str] = "prompt"

    kind: Literal["open_ended"] = Field(
        default="open_ended", description="Says which kind of job it is"
    )
    prompt: Text = Field(description="The prompt")


class OpenEnded(Kind[OpenEndedJob]):
    """An open-ended answer is its whole Output; near-duplicates are one solution."""

    model = OpenEndedJob

    def read(self, output: str) -> ExtractedAnswer | None:
        """The whole output."""
        return text_answer(output)

    def merge(self, answers: Sequence[tuple[str, float]]) -> list[str]:
        """Each pair counts under the key of the most confident member of its cluster."""
        keys = [key for key, _ in answers]
        for group in cluster(answers):
            for index in group:
                keys[index] = answers[group[0]][0]
        return keys

    def equal(self, found: str, expected: str) -> bool:
        """Whether the two are near-duplicates."""
        a, b = text_key(found), text_key(expected)
        return bool(a and b) and similarity(trigrams(a), trigrams(b)) >= NEAR


def cluster(outputs: Sequence[tuple[str, float]]) -> list[list[int]]:
    """Groups of near-duplicate (output, value) pairs, as indices, the best group first.

    Outputs are processed by descending value (then by text): each joins the nearest group leader
    that it is a near-duplicate of, or leads a new group. A group's first index is its leader. The
    groups do not depend on the order of `outputs`.
    """
    keys = [text_key(output) for output, _ in outputs]
    order = sorted(range(len(outputs)), key=lambda i: (-outputs[i][1], keys[i], i))
    groups: list[list[int]] = []
    leaders: list[frozenset[str]] = []
    group_of: dict[str, int] = {}  # texts seen before need no comparison
    for index in order:
        key = keys[index]
        if key not in group_of:
            grams = trigrams(key)
            scores = [similarity(grams, leader) for leader in leaders]
            best = max(range(len(scores)), key=scores.__getitem__, default=-1)
            if best < 0 or scores[best] < NEAR:
                best = len(groups)
                groups.append([])
                leaders.append(grams)
            group_of[key] = best
        groups[group_of[key]].append(index)
    return groups


def trigrams(text: str) -> frozenset[str]:
    """All runs of three characters of `text`, with its ends marked."""
    padded = f"\x02\x02{text}\x03"
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard index of two sets, in [0, 1]; 0 where it can't reach NEAR by size alone."""
    small, large = sorted((len(a), len(b)))
    if not small or small < NEAR * large:
        return 0.0
    common = len(a & b)
    return common / (small + large - common)
