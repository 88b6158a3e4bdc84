"""Preference pairs: in one tree a path to the answer, and a path to another that it won against.

The cleanest pair is a fork: both sides are the same text up to a token that the model was unsure
of, and one token decided. Such pairs go first, then those that share most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from operator import eq
from typing import Any

from marco_search.export.tables import Filter
from marco_search.learning.samples import Pair
from marco_search.learning.traces import Reader, Tree, language
from marco_search.search.tree import Rollout
from marco_search.store.db import Conn, select


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A rollout that was made to begin with a token that another had passed over."""

    rollout_id: int
    start_id: int  #: the node that both sides go on from
    position: int  #: tokens generated before
    taken: str | None
    passed_over: str | None


def pairs_of(reader: Reader, chosen: Filter) -> Iterator[Pair]:
    """The best pairs of each job that the rules keep, each with another loser, by the job's id."""
    for tree in reader.trees(chosen):
        won, lost = tree.learnable(reader), _lost(tree)
        if won and not lost:
            reader.drop(tree.stored, "unanimous", "no path leads to another answer")
        elif won:
            best = [max(((w, x) for w in won), key=lambda sides: _rank(tree, *sides)) for x in lost]
            best.sort(key=lambda sides: _rank(tree, *sides), reverse=True)
            for sides in best[: reader.rules.pairs_per_job]:
                yield pair(tree, *sides, fork=_fork(reader.conn, tree, *sides))


def pair(tree: Tree, won: Rollout, lost: Rollout, fork: Fork | None = None) -> Pair:
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
            "fork": fork and asdict(fork),
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


def _rank(tree: Tree, won: Rollout, lost: Rollout) -> tuple[Any, ...]:
    """Greater is better: a fork, the most nodes shared, the best winner, the first loser."""
    forked = _forked(won, lost) is not None
    return forked, _shared(won.path, lost.path), -tree.winners.index(won), -lost.rollout_id


def _forked(won: Rollout, lost: Rollout) -> Rollout | None:
    """The one that was made to begin with another token where the two part."""
    last = won.path[_shared(won.path, lost.path) - 1]
    return next((r for r in (won, lost) if r.forced is not None and r.start_id == last), None)


def _fork(conn: Conn, tree: Tree, won: Rollout, lost: Rollout) -> Fork | None:
    forked = _forked(won, lost)
    if forked is None:
        return None
    where = "audit.forks WHERE job_id = %s AND rollout_id = %s"
    (fork,) = select(conn, Fork, where, [tree.stored.job_id, forked.rollout_id])
    return fork
