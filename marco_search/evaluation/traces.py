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
from marco_search.search.branches import Finish, without_room
from marco_search.search.config import SearchConfig
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
    failed: bool = False  # the runtime gave no text: no answer is nobody's answer


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
    model: str = ""  # and its revision; empty in traces from before it was kept

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return sum(r.generated for r in self.rollouts)

    @property
    def failed(self) -> int:
        """Rollouts that the runtime gave no text for."""
        return sum(r.failed for r in self.rollouts)

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


def traced(
    key: str,
    job: Job,
    nodes: Sequence[Node],
    rollouts: Sequence[Rollout],
    *,
    run: str,
    config: SearchConfig,
    stop_reason: str,
    seconds: float,
    keep_tokens: bool,
    model: str = "",
) -> Trace:
    """The trace of a search from its records, root and all, in id order."""
    kind, answers = kind_of(job), dict[str, str]()
    for r in rollouts:
        if r.answer is not None and r.answer not in answers:
            text = kind.assistant_prefix + "".join(nodes[i].text for i in r.path)
            answers[r.answer] = kind.output(text) or r.answer
    return Trace(
        key=key,
        run=run,
        choice=str(config.choice),
        sharpness=config.sharpness,
        stop_reason=stop_reason,
        seconds=round(seconds, 3),
        answers=answers,
        rollouts=tuple(map(_traced_rollout, rollouts)),
        scores=tuple(map(token_scores, nodes)) if keep_tokens else (),
        texts=tuple(n.text for n in nodes) if keep_tokens else (),
        model=model,
    )


def _traced_rollout(rollout: Rollout) -> TracedRollout:
    return TracedRollout(
        answer=rollout.answer,
        round=rollout.round,
        start=rollout.start_id,
        path=rollout.path,
        generated=rollout.generated_tokens,
        prompt=rollout.prompt_tokens,
        cached=rollout.cached_tokens,
        confidence=round(rollout.confidence, DIGITS),
        path_confidence=round(rollout.path_confidence, DIGITS),
        # A path that fills the model's context ends there for good.
        failed=rollout.finish is Finish.FAILED and not without_room(rollout.error),
    )


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
