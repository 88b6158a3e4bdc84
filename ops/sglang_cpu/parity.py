"""The embedded engine and the real server, asked the same through the same fork program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from marco_search import pocket
from marco_search.kinds import ReasoningJob, kind_of
from marco_search.runtime.base import Runtime
from marco_search.search.branches import MARCO_O1, Branch, BranchRequest, Expansion
from marco_search.search.rewards import confidences

_AT_ONCE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How two runtimes agree on greedy completions. Differences are the largest seen."""

    prompts: int
    same_tokens: int  #: prompts whose completions are the same, token by token
    tokens: int  #: positions compared
    logprob_delta: float  #: of chosen tokens and all candidates
    confidence_delta: float
    errors: tuple[str, ...]


def prompts(runtime: Runtime, count: int) -> list[str]:
    """Rendered prompts of held-out problems, half of them English, half Chinese."""
    found = []
    for name in ("heldout_en", "heldout_zh"):
        for row in pocket.held_out(name)[: count // 2]:
            job = ReasoningJob(question=row["question"])
            kind = kind_of(job)
            found.append(runtime.render(kind.messages(job)) + MARCO_O1.opening)
    return found


def compare(one: Runtime, other: Runtime, texts: Sequence[str], max_new_tokens: int) -> Parity:
    """Continue each text greedily on both."""
    same = positions = 0
    logprob_delta = confidence_delta = 0.0
    errors: list[str] = []
    both = [_greedy(runtime, texts, max_new_tokens) for runtime in (one, other)]
    for branches in zip(*both, strict=True):
        errors += [str(branch.error) for branch in branches if branch.error]
        left, right = ([t for s in branch.segments for t in s.tokens] for branch in branches)
        same += [t.id for t in left] == [t.id for t in right]
        for x, y in zip(left, right, strict=False):
            if x.id != y.id:
                break  # from here on they write different texts
            positions += 1
            ours, theirs = dict(x.top), dict(y.top)
            shared = [abs(ours[i] - theirs[i]) for i in ours.keys() & theirs.keys()]
            # Candidates of nearly the same probability may change places at the end of the list.
            last = abs(min(ours.values()) - min(theirs.values()))
            logprob_delta = max(logprob_delta, abs(x.logprob - y.logprob), last, *shared)
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
    request = BranchRequest(branch_id=0, seed=0, max_new_tokens=max_new_tokens, temperature=0.0)
    expansions = [
        Expansion(node_id=0, prefix=text, branches=(replace(request, branch_id=i),))
        for i, text in enumerate(texts)
    ]
    parts = (expansions[i : i + _AT_ONCE] for i in range(0, len(expansions), _AT_ONCE))
    return [branch for part in parts for branch in runtime.branch(part)]
