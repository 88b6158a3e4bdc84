"""Preference pairs: in one tree a path to the answer, and a path to another that it won against.

The cleanest pair is a fork: both sides are the same text up to a token that the model was unsure
of, and one token decided. Such pairs go first, then those that share most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from operator import eq
from typing import Any

from marco_search.export.tables import Filter
from marco_search.learning.samples import Pair
from marco_search.learning.traces import Reader, Tree, language
from marco_search.search.tree import ROOT, Rollout


def pairs_of(reader: Reader, chosen: Filter) -> Iterator[Pair]:
    """The best pair of each job that the rules keep, by the job's id."""
    for tree in reader.trees(chosen):
        won, lost = tree.learnable(reader), _lost(tree)
        if won and not lost:
            reader.drop(tree.stored, "unanimous", "no path leads to another answer")
        elif won:
            yield pair(
                tree, *max(((w, x) for w in won for x in lost), key=lambda p: _rank(tree, p))
            )


def pair(tree: Tree, won: Rollout, lost: Rollout) -> Pair:
    """The pair that two paths make."""
    stored, texts = tree.stored, (tree.text(won), tree.text(lost))
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts)
    return Pair(
        prompt=tree.prompt,
        chosen=chosen,
        rejected=rejected,
        shared_prefix=_shared(*texts),
        language=language(tree),
        tenant=stored.tenant,
        provenance={
            "job": str(stored.job_id),
            "chosen": tree.about(won),
            "rejected": tree.about(lost),
            "fork": _fork(tree, won, lost),
            "answer": won.answer,
            "rejected_answer": lost.answer,
            "vote": stored.share,
            "confidence": stored.confidence,
            "verified": tree.verified(won),
            "model": stored.model,
            "revision": stored.revision,
            "root": stored.root,
        },
    )


def _lost(tree: Tree) -> list[Rollout]:
    """The rollouts with an answer that is neither the job's nor said to be right."""
    won = {w.rollout_id for w in tree.winners}
    others = (r for r in tree.rollouts if r.answer is not None and r.rollout_id not in won)
    return [r for r in others if not tree.verified(r)]


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How much both begin with."""
    return sum(takewhile(bool, map(eq, one, other)))


def _rank(tree: Tree, sides: tuple[Rollout, Rollout]) -> tuple[Any, ...]:
    """Greater is better: a fork, the most nodes shared, the best winner, the first loser."""
    won, lost = sides
    forked = _fork(tree, won, lost) is not None
    return forked, _shared(won.path, lost.path), -tree.winners.index(won), -lost.rollout_id


def _fork(tree: Tree, won: Rollout, lost: Rollout) -> dict[str, Any] | None:
    """Where the two part, if one was made to begin there with a token passed over by the other.

    `position` is in tokens generated before.
    """
    at = _shared(won.path, lost.path)
    last = won.path[at - 1]
    for rollout, other in ((won, lost), (lost, won)):
        if rollout.forced is None or rollout.start_id != last or len(other.path) <= at:
            continue
        fork = tree.nodes[rollout.path[at]].fork
        if fork:
            before = sum(tree.nodes[i].tokens for i in won.path[:at] if i != ROOT)
            texts = {"taken": fork["taken"], "passed_over": fork["passed_over"]}
            return {"node": last, "position": before, **texts}
    return None
