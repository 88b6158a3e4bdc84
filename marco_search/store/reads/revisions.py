"""Revisions of models that jobs were searched with, and what each made of the same questions.

Reads the views of the schema `audit` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from marco_search.errors import QueryRefused
from marco_search.store.db import Conn, select

MOST_PAIRS = 10_000
"""Questions that two revisions are compared on at most: the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A row of the view audit.models: a revision, and what it was fine-tuned from and on."""

    model: str
    revision: str
    method: str | None
    parent_model: str | None
    parent_revision: str | None
    manifests: list[str]  #: SHA-256 of each data set's manifest
    config_sha256: str | None
    seed: int | None
    claims: int
    first_used: datetime
    last_used: datetime

    @property
    def key(self) -> str:
        """What names it in an address."""
        return f"{self.model} {self.revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A row of the view audit.revision_pairs: one question, searched with both revisions."""

    tenant: str
    subject: str
    strategy: str
    old_job: UUID
    old_answer: str | None
    old_correct: bool | None  #: None: no answer was expected
    old_confidence: float | None
    old_tokens: int
    new_job: UUID
    new_answer: str | None
    new_correct: bool | None
    new_confidence: float | None
    new_tokens: int
    changed: bool  #: the best answer


def revisions(conn: Conn) -> list[Revision]:
    """All of them, the one used last first."""
    return select(conn, Revision, "audit.models ORDER BY last_used DESC, model, revision")


def named(known: list[Revision], word: str) -> Revision:
    """The revision with this name, beginning of a hash, or both with a space between.

    Raises QueryRefused if none fits or several do.
    """
    found = {
        one.key: one
        for one in known
        if word in (one.model, one.key)
        or (len(word) >= 4 and (one.revision.startswith(word) or one.key.startswith(word)))
    }
    if len(found) == 1:
        return next(iter(found.values()))
    several = "several revisions, give the beginning of one's hash" if found else "no revision"
    among = list(found.values()) or known
    names = ", ".join(f"{one.model} {one.revision[:12]}" for one in among[:20])
    raise QueryRefused(f"{word!r} fits {several}; jobs were searched with: {names or 'none yet'}")


def pairs(conn: Conn, old: Revision, new: Revision, *, tenant: str | None = None) -> list[Pair]:
    """The questions that both revisions were asked, the latest MOST_PAIRS of them first."""
    source = """audit.revision_pairs
        WHERE old_model = %(old_model)s AND old_revision = %(old)s
        AND new_model = %(new_model)s AND new_revision = %(new)s
        AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
        ORDER BY new_job DESC LIMIT %(most)s"""
    given = {
        "old_model": old.model, "old": old.revision,
        "new_model": new.model, "new": new.revision, "tenant": tenant, "most": MOST_PAIRS,
    }  # fmt: skip
    return select(conn, Pair, source, given)
