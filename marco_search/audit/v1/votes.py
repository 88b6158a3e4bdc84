"""Checks the ranked answers: they are those that the rollouts' votes give, in that order.

Votes are counted on the keys as they are stored: no text is read again. Of a kind of job
whose near-duplicates count as one answer, which rollouts belong together is taken from the
stored answers. What follows from it is checked, that they are alike is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from marco_search.audit.findings import Finding
from marco_search.audit.v1.nodes import ROUNDING
from marco_search.search.rewards import CONFIDENCE

_MERGED = ("open_ended",)
"""Kinds of job whose near-duplicates are one answer."""


Ranked = SimpleNamespace
"""An answer as the vote has it: the columns of its row, and its weight."""


def check_answers(
    job_id: UUID,
    job: Mapping[str, Any],
    payload: Mapping[str, Any],
    config: Mapping[str, Any],
    rollouts: Sequence[Any],
    answers: Sequence[Any],
) -> Iterator[Finding]:
    """What does not follow from the votes."""
    if not answers and job["state"] != "succeeded":
        return  # ended before anything was ranked
    voters = [r for r in rollouts if r.answer is not None]
    merged = job["kind"] in _MERGED
    keys = {r.rollout_id: str(r.answer) for r in voters}
    if merged:
        keys, apart = _merged(keys, answers)
        if apart is not None:
            found = f"{apart!r} in two"
            yield Finding("answers", f"job {job_id}", "one key", "one answer", found, job_id)
            return
    try:
        ranked = _rank(voters, keys, config)
    except (KeyError, ValueError, OverflowError) as error:
        yield Finding("rollouts", f"job {job_id}", "no vote", "votes", str(error), job_id)
        return
    expected = ranked[: (payload.get("options") or {}).get("answers", len(answers))]
    # Those that are not shown may have been merged as well, which counts where the best decide.
    bound = merged and config["choice"] == "best" and len(expected) < len(ranked)
    for i, (wanted, stored) in enumerate(zip_longest(expected, answers)):
        key = f"job {job_id}, rank {i + 1}"
        if stored is None:
            yield Finding("answers", key, "missing", repr(wanted.key), "no row", job_id)
        elif wanted is None:
            yield Finding("answers", key, "not voted for", "no row", repr(stored.key), job_id)
        else:
            highest = _highest_share(ranked, len(expected), i) if bound else None
            wanted.rank = i + 1
            yield from _compare(job_id, key, stored, wanted, highest)


def _merged(keys: Mapping[int, str], answers: Sequence[Any]) -> tuple[dict[int, str], str | None]:
    """The key that each rollout counts under, and a key that counts under two."""
    found = dict(keys)
    for answer in answers:
        found |= dict.fromkeys(keys.keys() & set(answer.rollout_ids), answer.key)
    under: dict[str, str] = {}
    for rollout_id, key in keys.items():
        if under.setdefault(key, found[rollout_id]) != found[rollout_id]:
            return found, key
    return found, None


def _rank(
    voters: Sequence[Any], keys: Mapping[int, str], config: Mapping[str, Any]
) -> list[Ranked]:
    how = config["choice"]
    own = config.get("value", "path") in CONFIDENCE
    values = {r.rollout_id: r.path_confidence if own else r.value for r in voters}
    groups: dict[str, list[tuple[float, Any]]] = {}
    for row in voters:
        if not 0.0 <= values[row.rollout_id] <= 1.0:
            raise ValueError(f"rollout {row.rollout_id} has value {values[row.rollout_id]}")
        groups.setdefault(keys[row.rollout_id], []).append((values[row.rollout_id], row))
    weights = {key: _weight([v for v, _ in g], how, config) for key, g in groups.items()}
    total = math.fsum(weights.values())
    ranked = []
    for key, group in groups.items():
        highest, best = min(group, key=lambda pair: (-pair[0], pair[1].rollout_id))
        leaders = [r for v, r in group if v == highest]
        ids = tuple(sorted(r.rollout_id for _, r in group))
        ranked.append(
            Ranked(
                # An answer has the key of its most confident rollout.
                key=key if any(r.answer == key for r in leaders) else str(best.answer),
                rollout_ids=ids,
                votes=len(ids),
                confidence=min(1.0, math.fsum(v for v, _ in group) / len(group)),
                share=weights[key] / total if total else len(group) / len(voters),
                weight=weights[key],
                order=(-weights[key], -highest, best.rollout_id),
            )
        )
    return sorted(ranked, key=lambda a: a.order)


def _weight(values: Sequence[float], how: str, config: Mapping[str, Any]) -> float:
    if how == "vote":
        return float(len(values))
    if how == "weighted":
        return math.fsum(v ** config["sharpness"] for v in values)
    if how == "best":
        return max(values)
    raise ValueError(f"answers ranked by {how!r}")


def _highest_share(ranked: Sequence[Ranked], shown: int, place: int) -> float:
    """The share of an answer if all that are not shown were one."""
    least = math.fsum(a.weight for a in ranked[: shown + 1])
    return ranked[place].weight / least if least else 1.0


def _compare(
    job_id: UUID, key: str, stored: Any, expected: Ranked, highest: float | None
) -> Iterator[Finding]:
    for what in ("rank", "key", "rollout_ids", "votes", "confidence", "share"):
        wanted, found = getattr(expected, what), getattr(stored, what)
        near = isinstance(wanted, float) and abs(wanted - float(str(found))) <= ROUNDING
        if what == "share" and highest is not None:
            near = wanted - ROUNDING <= found <= highest + ROUNDING
        if wanted != found and not near:
            yield Finding("answers", key, what, f"{wanted!r} by the vote", repr(found), job_id)
            return
