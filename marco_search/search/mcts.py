"""Tree search as ask and tell: no clock, no I/O, no hidden randomness.

`ask()` selects children and returns the branches to fork for them. `tell()` adds the finished
branches, in any order: their actions become nodes, their values are backed up in branch order,
and the round is returned for the trail. Branches in flight never touch the tree, so the tree
after a round depends only on configuration, prompt, model and seed, and a search restored from
the stored rounds continues exactly as the interrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import zip_longest

from marco_search.errors import SearchError
from marco_search.search import budgets
from marco_search.search.actions import Action, cut
from marco_search.search.best_first import BestFirst
from marco_search.search.branches import (
    Branch,
    BranchRequest,
    Expansion,
    Finish,
    Part,
    Segment,
    Token,
)
from marco_search.search.budgets import StopReason
from marco_search.search.config import SearchConfig, Selection
from marco_search.search.rewards import (
    CONFIDENCE,
    REWARDS,
    ScoredRollout,
    confidences,
    mean,
    voters,
)
from marco_search.search.selection import Frontier
from marco_search.search.tree import Child, Node, Rollout, Round, Tree
from marco_search.search.votes import Aggregation, Candidate, RankedAnswer, rank

Merge = Callable[[Sequence[tuple[str, float]]], list[str]]
"""For each (answer key, value) the key it counts under after merging near-duplicates."""


class Search:
    """One search over one prompt.

    `answer_of` maps the text generated so far on a path (without the prompt) to the key
    that votes are counted by, or None; it must be a pure function. `merge` merges near-duplicates
    before votes are counted. With a `tree` (`Tree.restore`) the search continues after the last
    round in it.
    """

    def __init__(
        self,
        config: SearchConfig,
        prompt: str,
        answer_of: Callable[[str], str | None],
        *,
        tree: Tree | None = None,
        merge: Merge | None = None,
    ) -> None:
        self.config = config
        self.prompt = prompt
        self.tree = tree or Tree()
        best_first = config.selection is Selection.BEST_FIRST
        self.frontier = (BestFirst if best_first else Frontier)(self.tree, config)
        self._answer_of = answer_of
        self._merge = merge
        #: What is in flight, by branch.
        self.asked: dict[int, tuple[Child, BranchRequest]] = {}
        self.stop_reason: StopReason | None = None  # why it has ended
        self.round = max((r.round for r in self.tree.rollouts), default=0)
        self.tokens = sum(r.generated_tokens for r in self.tree.rollouts)  # generated so far

    # -- ask --------------------------------------------------------------------------

    def ask(self, elapsed_s: float = 0.0) -> list[Expansion]:
        """The next round's branches, grouped by the text they fork from.

        `elapsed_s` is the time the search has used so far, in seconds. Empty when the search
        has ended; `stop_reason` then says why. Raises SearchError while a round is out.
        """
        if self.asked:
            raise SearchError("the round is not complete: tell() its branches before ask()")
        self.stop_reason = self.stop_reason or budgets.spent(
            self.config, self.tree.rollouts, self.tokens, elapsed_s, self.ranked
        )
        if self.stop_reason:
            return []
        count, max_new_tokens = budgets.round_size(self.config, self.tree.rollouts, self.tokens)
        groups: dict[tuple[int, int | None], list[BranchRequest]] = {}
        for child in self.frontier.select(count):
            request = self._request(child, max_new_tokens)
            groups.setdefault((child.node_id, child.forced), []).append(request)
        return [self._expansion(*start, requests) for start, requests in groups.items()]

    def _request(self, child: Child, max_new_tokens: int) -> BranchRequest:
        branch_id = len(self.tree.rollouts) + len(self.asked)
        request = BranchRequest(
            branch_id=branch_id,
            seed=branch_seed(self.config.seed, branch_id),
            # The candidate that a fork begins with counts as generated.
            max_new_tokens=max_new_tokens - (child.forced is not None),
            temperature=self.config.temperature_of(branch_id, child.forced, child.reflect),
            top_p=self.config.top_p,
            reflect=child.reflect,
        )
        self.asked[branch_id] = child, request
        return request

    def _expansion(
        self, node_id: int, forced: int | None, requests: Sequence[BranchRequest]
    ) -> Expansion:
        parts: tuple[Part, ...] = (self.prompt, *self.tree.parts(node_id))
        text = self.prompt + self.tree.text(node_id)
        if forced is not None:
            parts, text = (*parts, (forced,)), text + self.tree.texts[forced]
        return Expansion(
            node_id=node_id,
            prefix=text,
            parts=parts,
            branches=tuple(requests),
            turn=self.config.turn,
        )

    # -- tell -------------------------------------------------------------------------

    def tell(self, branches: Iterable[Branch]) -> Round:
        """Add the branches of the round, in any order; returns what they added.

        Raises SearchError unless they are the requested ones, and for one that generated more
        tokens than allowed.
        """
        asked, arrived = self.asked, {branch.branch_id: branch for branch in branches}
        if not asked or arrived.keys() != asked.keys():
            names = sorted(arrived.keys() ^ asked.keys())
            raise SearchError(f"branches were never asked for, or are missing: {names}")
        for i, branch in arrived.items():
            if branch.generated_tokens > asked[i][1].max_new_tokens:
                raise SearchError(f"branch {i} generated more tokens than it was given")
            if not all(0.0 <= score <= 1.0 for score in branch.scores or ()):
                raise SearchError(f"branch {i} has scores outside [0, 1]")
        self.abandon()
        self.round += 1
        first_node, first_rollout = len(self.tree.nodes), len(self.tree.rollouts)
        for branch in arrived.values():
            self.tree.texts.update(branch.texts)
        for i, (child, request) in asked.items():
            rollout = self._grow(child, request, arrived[i])
            self.tree.record(rollout)
            self.tokens += rollout.generated_tokens
        self.frontier.catch_up()
        return Round(
            number=self.round,
            nodes=tuple(self.tree.nodes[first_node:]),
            rollouts=tuple(self.tree.rollouts[first_rollout:]),
        )

    def _grow(self, child: Child, request: BranchRequest, branch: Branch) -> Rollout:
        """Add the branch's nodes and return its rollout, not yet recorded.

        All tokens of the branch become nodes. A rollout without an answer (cut off, or nothing
        to extract) backs up 0, since a loop repeats itself with high confidence.
        """
        tree, path = self.tree, list(self.tree.path(child.node_id))
        own: list[float] = []
        if branch.finish is not Finish.FAILED:
            if child.forced is not None:
                branch = _begun_with(tree.candidate(child.node_id, child.forced), branch)
            own = _add_nodes(tree, self.config, path, branch, self.round)
        leaf = path[-1]
        answer = self._answer_of(tree.text(leaf)) if branch.finish is Finish.STOP else None
        confidence, path_confidence = mean(own), tree.path_confidence(leaf)
        value, reward = 0.0, self.config.reward
        if answer is None:
            pass
        elif reward in CONFIDENCE:
            value = confidence if reward == "rollout" else path_confidence
        else:
            start = path.index(child.node_id)
            value = REWARDS[reward](scored_rollout(tree, path, start, answer, branch.scores or ()))
            if not (isinstance(value, int | float) and 0.0 <= value <= 1.0):
                raise SearchError(f"reward {reward} is {value!r}, not a number from 0 to 1")
        return Rollout(
            rollout_id=branch.branch_id,
            round=self.round,
            start_id=child.node_id,
            path=tuple(path),
            seed=request.seed,
            reflect=request.reflect,
            finish=branch.finish,
            confidence=confidence,
            path_confidence=path_confidence,
            value=value,
            answer=answer,
            generated_tokens=branch.generated_tokens,
            prompt_tokens=branch.prompt_tokens,
            cached_tokens=branch.cached_tokens,
            seconds=branch.seconds,
            error=branch.error,
            scores=branch.scores,
            forced=child.forced,
        )

    def abandon(self) -> None:
        """Forget the round in flight; `ask()` then returns the same branches again."""
        self.asked = {}

    def stop(self, reason: StopReason = StopReason.CANCELLED) -> None:
        """End the search now; its answers so far remain."""
        self.abandon()
        self.stop_reason = self.stop_reason or reason

    # -- read -------------------------------------------------------------------------

    def ranked(self) -> list[RankedAnswer]:
        """The distinct answers so far, best first."""
        # Votes are weighted by the path's confidence even if only the rollout's own is backed up.
        confidence = self.config.reward in CONFIDENCE
        voting, rewarded = voters(self.tree.rollouts, self.config.reward)
        found = [
            (str(r.answer), r.path_confidence if confidence else r.value, r.rollout_id)
            for r in map(self.tree.rollouts.__getitem__, voting)
        ]
        keys = [key for key, _, _ in found]
        if self._merge:
            keys = self._merge([(key, value) for key, value, _ in found])
        candidates = [
            Candidate(key, value, rollout_id)
            for key, (_, value, rollout_id) in zip(keys, found, strict=True)
        ]
        choice = self.config.choice if rewarded else Aggregation.VOTE
        ranked = rank(candidates, choice, self.config.scale)
        # Of near-duplicates with equal values any may have led; shown is the best rollout's.
        rollouts = self.tree.rollouts
        return [replace(one, key=str(rollouts[one.best_rollout_id].answer)) for one in ranked]


def _begun_with(forced: Token, branch: Branch) -> Branch:
    """The branch, beginning with the forced candidate."""
    first, *rest = branch.segments or (Segment(""),)
    segment = Segment(forced.text + first.text, (forced, *first.tokens))
    return replace(branch, segments=(segment, *rest))


def branch_seed(seed: int, branch_id: int) -> int:
    """The sampling seed of a branch, in [0, 2**31): a hash of the job's seed and its id."""
    digest = sha256(f"{seed}:{branch_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF


def scored_rollout(
    tree: Tree,
    path: Sequence[int],
    start: int,
    answer: str | None,
    scores: Sequence[float] = (),
) -> ScoredRollout:
    """The next rollout of `tree`, along `path`, as input of a reward."""
    return ScoredRollout(
        path=[tree.token_scores(i) for i in path],
        start=start,
        answer=answer,
        others=[r.answer for r in tree.rollouts],
        scores=scores,
    )


def _add_nodes(
    tree: Tree, config: SearchConfig, path: list[int], branch: Branch, round_number: int
) -> list[float]:
    """Extend `path` by the branch's actions, adding nodes that do not exist yet.

    Returns c_i of all tokens of the branch, in order.
    """
    own: list[float] = []
    segments = [s for s in branch.segments if s.text or s.tokens]
    ended = branch.finish is Finish.STOP
    thought_open = not tree.thought_closed(path[-1])
    for segment, following in zip_longest(segments, segments[1:]):
        # The thought was about to end and reflects instead: its end is kept as a sibling.
        closing = following is not None and following.forced
        parts = [(Action.REFLECTION, segment.tokens)]
        if not segment.forced:
            parts = cut(
                segment.tokens,
                config.action,
                config.mini_step_tokens,
                config.turn,
                thought_open=thought_open,
                before=tree.text(path[-1]) if thought_open else "",
                ended=ended and following is None,
                closing=closing,
            )
            answered = any(action == Action.ANSWER for action, _ in parts)
            thought_open = thought_open and (closing or not answered)
        for j, (action, tokens) in enumerate(parts, start=1):
            node = Node(
                node_id=len(tree.nodes),
                parent_id=path[-1],
                depth=len(path),
                round=round_number,
                action=action,
                text=segment.text if segment.forced else "".join(t.text for t in tokens),
                tokens=tokens,
                confidences=confidences(tokens),
                terminal=ended and following is None and j == len(parts) and not segment.forced,
            )
            own.extend(node.confidences)
            known = tree.find(node)
            if known is None:
                tree.add(node)
            if not (closing and action == Action.ANSWER):
                path.append(node.node_id if known is None else known)
    return own
