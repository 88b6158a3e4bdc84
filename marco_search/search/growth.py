"""Turns one finished branch into nodes and a rollout.

All tokens of the branch become nodes: its text is cut into actions, and an action that the
tree holds already is shared. The value backed up is Marco-o1's mean confidence, over the
whole path or over the rollout's own tokens. A rollout without an answer (cut off, or
nothing to extract) backs up 0: a loop repeats itself with great confidence.
"""

from __future__ import annotations

from collections.abc import Callable

from marco_search.search.actions import cut
from marco_search.search.branches import (
    END_OF_THOUGHT,
    Branch,
    BranchRequest,
    Finish,
    Token,
)
from marco_search.search.confidence import confidences, mean_confidence
from marco_search.search.config import Action, SearchConfig, Value
from marco_search.search.records import Node, Rollout
from marco_search.search.tree import Tree


def grow(
    tree: Tree,
    config: SearchConfig,
    *,
    start_id: int,
    request: BranchRequest,
    branch: Branch,
    round_number: int,
    answer_of: Callable[[str], str | None],
) -> Rollout:
    """Add the branch's nodes below `start_id` and return its rollout, not yet recorded."""
    failed = branch.finish is Finish.FAILED
    path = list(tree.path(start_id))
    own: list[float] = []
    if not failed:
        own = _add_nodes(tree, config, path, branch, round_number)
    leaf = path[-1]
    answer = answer_of(tree.text(leaf)) if branch.finish is Finish.STOP else None
    confidence = mean_confidence(own)
    path_confidence = tree.path_confidence(leaf)
    reward = path_confidence if config.value is Value.PATH else confidence
    return Rollout(
        rollout_id=branch.branch_id,
        round=round_number,
        start_id=start_id,
        path=tuple(path),
        seed=request.seed,
        reflect=request.reflect,
        finish=branch.finish,
        confidence=confidence,
        path_confidence=path_confidence,
        value=reward if answer is not None else 0.0,
        answer=answer,
        generated_tokens=branch.generated_tokens,
        prompt_tokens=branch.prompt_tokens,
        cached_tokens=branch.cached_tokens,
        seconds=branch.seconds,
        error=branch.error,
    )


def _add_nodes(
    tree: Tree, config: SearchConfig, path: list[int], branch: Branch, round_number: int
) -> list[float]:
    """Extend `path` by the branch's actions, adding the nodes that are not there yet.

    Returns c_i of all tokens of the branch, in order.
    """
    own: list[float] = []

    def step(
        action: Action, text: str, tokens: tuple[Token, ...], terminal: bool, follow: bool = True
    ) -> None:
        node = Node(
            node_id=len(tree.nodes),
            parent_id=path[-1],
            depth=len(path),
            round=round_number,
            action=action,
            text=text,
            tokens=tokens,
            confidences=confidences(tokens),
            terminal=terminal,
        )
        own.extend(node.confidences)
        known = tree.find(node)
        if known is None:
            tree.add(node)
        if follow:
            path.append(node.node_id if known is None else known)

    segments = [s for s in branch.segments if s.text or s.tokens]
    thought_open = not tree.thought_closed(path[-1])
    for i, segment in enumerate(segments):
        if segment.forced:
            step(Action.REFLECTION, segment.text, (), terminal=False)
            continue
        # The thought was about to close and reflects instead: its closing is kept beside.
        closing = i + 1 < len(segments) and segments[i + 1].forced
        cuts = cut(
            segment.tokens,
            action=config.action,
            mini_step_tokens=config.mini_step_tokens,
            thought_open=thought_open,
        )
        for j, part in enumerate(cuts):
            last = i == len(segments) - 1 and j == len(cuts) - 1
            step(
                part.action,
                part.text,
                part.tokens,
                terminal=last and branch.finish is Finish.STOP,
                follow=not (closing and part.action is Action.ANSWER),
            )
        thought_open = thought_open and not (END_OF_THOUGHT in segment.text and not closing)
    return own
