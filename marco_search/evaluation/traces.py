"""What an evaluation keeps of each search: rollouts, answers and token scores, no labels.

A trace is one line of JSON. From it every figure of the report follows, as do other rewards
and votes (`rescoring`) and what the search would have answered at a smaller budget
(`curves`), without generating a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from marco_search.jobs import Job
from marco_search.kinds import kind_of
from marco_search.search.records import ROOT, Node, Rollout

DIGITS = 5
"""Decimals of the scores in a trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Scores of a node's tokens, in order."""

    c: tuple[float, ...]  # Marco-o1's confidence c_i, in [0, 1]
    logprob: tuple[float, ...]  # of the chosen token
    mean_top: tuple[float, ...]  # mean log-prob of the TOP_K best candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRollout:
    """One rollout, as far as it matters here."""

    answer: str | None  # key into Trace.answers
    round: int
    start: int  # index of the node it was forked from
    path: tuple[int, ...]  # indices of its nodes, root first
    generated: int  # tokens
    prompt: int  # tokens of the forked prefix
    cached: int  # of those, from the prefix cache
    confidence: float  # mean c_i over the rollout's own tokens
    path_confidence: float  # mean c_i over its path


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One search over one problem."""

    key: str  # of the problem
    run: str  # hash of everything that decided how the search ran
    choice: str  # how the answer is chosen: "vote", "weighted" or "best"
    sharpness: float  # power of a weighted vote's weights
    stop_reason: str
    seconds: float
    answers: dict[str, str]  # answer key -> the Output part as written
    rollouts: tuple[TracedRollout, ...]  # in id order
    scores: tuple[TokenScores, ...] = field(default=())  # of each node; empty if not kept
    texts: tuple[str, ...] = field(default=())  # of each node; empty if not kept

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return sum(r.generated for r in self.rollouts)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same trace back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trace:
        """The trace written by `to_json`. Raises KeyError or TypeError for anything else."""
        rollouts = tuple(TracedRollout(**r | {"path": tuple(r["path"])}) for r in data["rollouts"])
        scores = tuple(
            TokenScores(**{name: tuple(values) for name, values in s.items()})
            for s in data["scores"]
        )
        texts = tuple(data["texts"])
        return cls(**data | {"rollouts": rollouts, "scores": scores, "texts": texts})


def traced_rollouts(
    job: Job, nodes: Sequence[Node], rollouts: Sequence[Rollout]
) -> tuple[tuple[TracedRollout, ...], dict[str, str]]:
    """The rollouts of a tree (nodes in id order) and the Output part behind each answer key."""
    kind, answers = kind_of(job), dict[str, str]()
    traced = []
    for r in rollouts:
        if r.answer is not None and r.answer not in answers:
            text = kind.assistant_prefix + "".join(nodes[i].text for i in r.path)
            answers[r.answer] = kind.output(text) or r.answer
        traced.append(
            TracedRollout(
                answer=r.answer,
                round=r.round,
                start=r.start_id,
                path=r.path,
                generated=r.generated_tokens,
                prompt=r.prompt_tokens,
                cached=r.cached_tokens,
                confidence=round(r.confidence, DIGITS),
                path_confidence=round(r.path_confidence, DIGITS),
            )
        )
    return tuple(traced), answers


def token_scores(node: Node) -> TokenScores:
    """The scores of one node's tokens."""
    return TokenScores(
        c=tuple(round(c, DIGITS) for c in node.confidences),
        logprob=tuple(round(t.logprob, DIGITS) for t in node.tokens),
        mean_top=tuple(
            round(sum(p for _, p in t.top) / len(t.top), DIGITS) if t.top else 0.0
            for t in node.tokens
        ),
    )


def own_path(rollout: TracedRollout) -> tuple[int, ...]:
    """The nodes below the one that the rollout was forked from."""
    if rollout.start == ROOT:
        return rollout.path[1:]
    return rollout.path[rollout.path.index(rollout.start) + 1 :]
