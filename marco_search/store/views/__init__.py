"""The public SQL interface: views in the schema `audit`, for people who read with SQL.

They follow from the tables alone, so they are made again whenever their definition
changed (`migrations.upgrade`), not by migrations of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

from marco_search.store.views.jobs import ANSWERS, ATTEMPTS, CHAIN, EVENTS, JOBS
from marco_search.store.views.tokens import ALTERNATIVES, TOKENS, VOCABULARY
from marco_search.store.views.trees import NODE_STATS, NODES, ROLLOUTS, ROUNDS, TREE
from marco_search.store.views.usage import BATCH_USAGE, DAY_USAGE, JOB_USAGE, TENANT_USAGE
from marco_search.store.views.view import SCHEMA, View, comment

__all__ = ["DROP", "SCHEMA", "VIEWS", "View", "comment", "statements"]

VIEWS = (
    *(JOBS, ANSWERS, NODE_STATS, TREE, ROLLOUTS, ROUNDS, TOKENS, ALTERNATIVES, NODES, VOCABULARY),
    *(ATTEMPTS, EVENTS, JOB_USAGE, BATCH_USAGE, TENANT_USAGE, DAY_USAGE, CHAIN),
)
"""In order of creation, which is the order in which they are documented."""

DROP = f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"


def statements() -> Iterator[str]:
    """SQL that makes the schema and all views in it."""
    yield f"CREATE SCHEMA {SCHEMA}"
    for view in VIEWS:
        yield from view.statements()
