"""Whether the rows of one job agree with each other.

A finding's key names its row within the job; empty: the job's own. Votes are counted by the stored
keys: no text is read again. For kinds of jobs that merge near-duplicates, the groups are taken from
the stored answers. What follows from them is checked, but not that their members are alike.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

from marco_search.audit.canonical import unpack_ints
from marco_search.audit.findings import Finding
from marco_search.audit.proofs import Kinds, Rows
from marco_search.audit.tree import (
    ROUNDING,
    backed_up,
    check_nodes,
    check_rollouts,
    score_tokens,
    unpack_rollout,
    unpack_tokens,
)
from marco_search.errors import SearchError
from marco_search.search.rewards import CONFIDENCE, reward_of, voters
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, Scale, rank

_UNREADABLE = (struct.error, ValueError, IndexError, TypeError)
"""What reading raises for a row that no version of marco-search can have written."""
_UNPACKED: dict[str, Callable[[dict[str, Any]], None]] = {
    "attempt": lambda _: None,
    "node": unpack_tokens,
    "rollout": unpack_rollout,
    "answer": lambda row: row.update(rollout_ids=unpack_ints(row["rollout_ids"])),
}
"""By kind: what becomes of the arrays in a row."""
Visits = Mapping[int, tuple[int, float]]
"""Visit count and value by node."""
_UNMERGED = ("reasoning", "translation")
"""Kinds of jobs that do not merge near-duplicates. A new kind may."""


def check_numbers(
    job: dict[str, Any], rows: Rows, visits: Visits | None, kinds: Kinds
) -> Iterator[Finding]:
    """All disagreements. `job`: request and outcome by column; `visits`: from the view."""
    plan = json.loads(job["plan"]) if job["plan"] else None
    config = plan["config"] if plan else {}
    read: dict[str, list[Any]] = {}
    for name, unpack in _UNPACKED.items():
        read[name] = []
        for key, row in rows.get(name, ()):
            try:
                values = kinds[name].reader.read(row)
                unpack(values)
            except _UNREADABLE as error:
                where = f"{kinds[name].key} {key}"
                yield Finding(kinds[name].table, where, "not readable", "a row", str(error))
                return
            read[name].append(SimpleNamespace(**values))
    nodes, rollouts, answers = read["node"], read["rollout"], read["answer"]
    yield from _check_attempts(plan, read["attempt"])
    tree, found = check_nodes(nodes)
    yield from found
    if len(tree) <= len(nodes):
        return  # nothing else can be computed
    if reward_of(config) not in CONFIDENCE:
        score_tokens(tree)
    yield from check_rollouts(tree, rollouts, config)
    yield from _check_visits(backed_up(rollouts), visits)
    payload = json.loads(job["payload"])
    yield from check_answers(job, payload, config, rollouts, answers)
    yield from _check_totals(job, len(nodes), rollouts, answers)


def _check_attempts(plan: Mapping[str, Any] | None, attempts: Sequence[Any]) -> Iterator[Finding]:
    """Every attempt that started has the plan's configuration, prompt and seed."""
    for attempt in attempts:
        if plan is None or attempt.config is None:
            continue
        key = f"generation {attempt.generation}"
        config = plan["config"]
        if json.loads(attempt.config) != config:
            yield Finding("attempts", key, "config", "the job's plan", "another")
        if attempt.prompt != plan["prompt"]:
            yield Finding("attempts", key, "prompt", "the prompt of the job's plan", "another")
        if attempt.seed != config["seed"]:
            yield Finding("attempts", key, "seed", str(config["seed"]), str(attempt.seed))


def _check_totals(
    job: Mapping[str, Any], nodes: int, rollouts: Sequence[Any], answers: Sequence[Any]
) -> Iterator[Finding]:
    """The counts and the answer on the job's row follow from the rest."""
    best = answers[0] if answers else None
    expected = {
        "nodes": nodes,
        "rollouts": len(rollouts),
        "rounds": max((r.round for r in rollouts), default=0),
        "generated_tokens": sum(r.generated_tokens for r in rollouts),
        "prompt_tokens": sum(r.prompt_tokens for r in rollouts),
        "cached_tokens": sum(r.cached_tokens for r in rollouts),
        "answer": best and best.text,
        "confidence": best and best.confidence,
    }
    for name, value in expected.items():
        if job[name] != value:
            yield Finding("jobs", "", name, f"{value!r} by its rows", repr(job[name]))


def _check_visits(values: Mapping[int, Sequence[float]], shown: Visits | None) -> Iterator[Finding]:
    if shown is None:
        return
    for node_id in sorted(values.keys() | shown.keys()):
        visits, value = shown.get(node_id, (0, 0.0))
        expected = len(values.get(node_id, ()))
        mean = sum(values[node_id]) / expected if expected else 0.0
        if visits != expected or not abs(value - mean) <= ROUNDING:
            wanted, found = f"{expected} with value {mean:.9g}", f"{visits} with value {value:.9g}"
            yield Finding("node_stats", f"node_id {node_id}", "visits", wanted, found)


def check_answers(
    job: Mapping[str, Any],
    payload: Mapping[str, Any],
    config: Mapping[str, Any],
    rollouts: Sequence[Any],
    answers: Sequence[Any],
) -> Iterator[Finding]:
    """Disagreements of the answers with the votes."""
    if not answers and job["state"] != "succeeded":
        return  # ended before anything was ranked
    places, rewarded = voters(rollouts, reward_of(config))
    voting = [rollouts[i] for i in places]
    if not rewarded:  # their scores are all missing: votes count alike
        config = {**config, "choice": "vote"}
    merged = job["kind"] not in _UNMERGED
    keys = {r.rollout_id: str(r.answer) for r in voting}
    if merged:
        keys, apart = _merged(keys, answers)
        if apart is not None:
            found = f"{apart!r} in two"
            yield Finding("answers", "", "one key", "one answer", found)
            return
    try:
        ranked = _rank(voting, keys, config)
    except (SearchError, KeyError, ValueError, OverflowError) as error:
        yield Finding("rollouts", "", "no vote", "votes", str(error))
        return
    expected = ranked[: (payload.get("options") or {}).get("answers", len(answers))]
    # Those that are not shown may have been merged as well, which counts where the best decide.
    bound = merged and config["choice"] == "best" and len(expected) < len(ranked)
    for i, (wanted, stored) in enumerate(zip_longest(expected, answers)):
        key = f"rank {i + 1}"
        if stored is None:
            yield Finding("answers", key, "missing", repr(wanted.key), "no row")
        elif wanted is None:
            yield Finding("answers", key, "not voted for", "no row", repr(stored.key))
        else:
            highest = _highest_share(ranked, len(expected), i) if bound else None
            if stored.rank != i + 1:
                yield Finding("answers", key, "rank", f"{i + 1} by the vote", repr(stored.rank))
                continue
            yield from _compare(key, stored, wanted, highest)


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
    voting: Sequence[Any], keys: Mapping[int, str], config: Mapping[str, Any]
) -> list[RankedAnswer]:
    own = reward_of(config) in CONFIDENCE
    values = {r.rollout_id: r.path_confidence if own else r.value for r in voting}
    ranked = rank(
        [Candidate(keys[i], value, i) for i, value in values.items()],
        Aggregation(config["choice"]),
        Scale(**{f.name: config[f.name] for f in fields(Scale) if f.name in config}),
    )
    # An answer has the key of its most confident rollout.
    answer_of = {r.rollout_id: str(r.answer) for r in voting}
    leading = {(key, values[i]) for i, key in answer_of.items() if key == keys[i]}
    return [
        one
        if (one.key, one.best_value) in leading
        else replace(one, key=answer_of[one.best_rollout_id])
        for one in ranked
    ]


def _highest_share(ranked: Sequence[RankedAnswer], shown: int, place: int) -> float:
    """The share of an answer if all that are not shown were one."""
    least = math.fsum(a.weight for a in ranked[: shown + 1])
    return ranked[place].weight / least if least else 1.0


def _compare(
    key: str, stored: Any, expected: RankedAnswer, highest: float | None
) -> Iterator[Finding]:
    for what in ("key", "rollout_ids", "votes", "confidence", "share"):
        wanted, found = getattr(expected, what), getattr(stored, what)
        near = isinstance(wanted, float) and abs(wanted - float(str(found))) <= ROUNDING
        if what == "share" and highest is not None:
            near = wanted - ROUNDING <= found <= highest + ROUNDING
        if wanted != found and not near:
            yield Finding("answers", key, what, f"{wanted!r} by the vote", repr(found))
            return
