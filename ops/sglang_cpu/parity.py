"""The embedded engine and the real server, asked the same through the same fork program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from marco_search import pocket
from marco_search.kinds import ReasoningJob, kind_of
from marco_search.runtime.base import Runtime
from marco_search.search.branches import Branch, BranchRequest, Expansion
from marco_search.search.rewards import confidences

_AT_ONCE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How two runtimes agree on greedy completions. Differences are the largest seen."""

    prompts: int
    same_tokens: int  # prompts whose completions are the same, token by token
    tokens: int  # positions compared
    logprob_delta: float  # of chosen tokens and all candidates
    confidence_delta: float
    errors: tuple[str, ...]


def prompts(runtime: Runtime, count: int) -> list[str]:
    """Rendered prompts of held-out problems, half of them English, half Chinese."""
    found = []
    for name in ("heldout_en", "heldout_zh"):
        for row in pocket.held_out(name)[: count // 2]:
            job = ReasoningJob(question=row["question"])
            kind = kind_of(job)
            found.append(runtime.render(kind.messages(job)) + kind.assistant_prefix)
    return found


def compare(one: Runtime, other: Runtime, texts: Sequence[str], max_new_tokens: int) -> Parity:
    """Continue each text greedily on both."""
    same = positions = 0
    logprob_delta = confidence_delta = 0.0
    errors: list[str] = []
    left_side = _greedy(one, texts, max_new_tokens)
    right_side = _greedy(other, texts, max_new_tokens)
    for a, b in zip(left_side, right_side, strict=True):
        errors += [str(branch.error) for branch in (a, b) if branch.error]
        left = [t for s in a.segments for t in s.tokens]
        right = [t for s in b.segments for t in s.tokens]
        same += [t.id for t in left] == [t.id for t in right]
        for x, y in zip(left, right, strict=False):
            if x.id != y.id:
                break  # from here on they write different texts
            positions += 1
            logprob_delta = max(logprob_delta, abs(x.logprob - y.logprob))
            ours, theirs = dict(x.top), dict(y.top)
            shared = [abs(ours[i] - theirs[i]) for i in ours.keys() & theirs.keys()]
            # Candidates of nearly the same probability may change places at the end of the list.
            last = abs(min(ours.values()) - min(theirs.values()))
            logprob_delta = max(logprob_delta, last, *shared)
            (c,), (d,) = confidences((x,)), confidences((y,))
            confidence_delta = max(confidence_delta, abs(c - d))
    return Parity(
        prompts=len(texts),
        same_tokens=same,
        tokens=positions,
        logprob_delta=logprob_delta if positions else math.inf,
        confidence_delta=confidence_delta,
        errors=tuple(errors),
    )


def _greedy(runtime: Runtime, texts: Sequence[str], max_new_tokens: int) -> list[Branch]:
    found: list[Branch] = []
    for start in range(0, len(texts), _AT_ONCE):
        expansions = []
        for i, text in enumerate(texts[start : start + _AT_ONCE], start):
            request = BranchRequest(
                branch_id=i, seed=i, max_new_tokens=max_new_tokens, temperature=0.0
            )
            expansions.append(Expansion(node_id=0, prefix=text, branches=(request,)))
        found += runtime.branch(expansions)
    return found
