"""What a search leaves behind: nodes and rollouts, frozen and only ever added.

These are the records that the audit trail keeps; everything else about a tree follows
from them.
"""

from __future__ import annotations

from dataclasses import dataclass

from marco_search.search.branches import Finish, Reflect, Token
from marco_search.search.config import Action

ROOT = 0
"""Id of the root node, whose text is empty: the prompt stands before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One action on the way from the prompt to an answer. Ids count up from 0, the root."""

    node_id: int
    parent_id: int | None  # None for the root only
    depth: int  # edges from the root
    round: int  # the round that added it; 0 for the root
    action: Action
    text: str
    tokens: tuple[Token, ...]  # none for the root and for a reflection
    confidences: tuple[float, ...]  # c_i of each token
    terminal: bool  # the end of the output or of the sequence was generated


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One branch from the node it was forked from to where it ended."""

    rollout_id: int  # the branch's id
    round: int
    start_id: int  # the node whose prefix was forked
    path: tuple[int, ...]  # root first; its last node is the leaf. Only (root..start) if failed
    seed: int
    reflect: Reflect
    finish: Finish
    confidence: float  # mean c_i of the tokens generated in this rollout
    path_confidence: float  # mean c_i of the path's generated tokens since its last reflection
    value: float  # what was backed up; 0.0 without an answer
    answer: str | None  # key of the extracted answer
    generated_tokens: int
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    error: str | None = None

    @property
    def leaf_id(self) -> int:
        """The node the rollout ended at."""
        return self.path[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round added to the tree; the unit that the trail commits."""

    number: int  # counts up from 1
    nodes: tuple[Node, ...]
    rollouts: tuple[Rollout, ...]
