"""What the console reads, each in one read-only transaction."""

from __future__ import annotations

from typing import Any, Protocol
from uuid import UUID

from marco_search.audit.findings import JobReport
from marco_search.errors import JobNotFound
from marco_search.render.document import tokens_json, vocabulary_json
from marco_search.render.vocabulary import Vocabulary
from marco_search.store.db import Database, reads_tables
from marco_search.store.reads import job_record, listing
from marco_search.store.reads.job_record import JobRecord, NodeTokens
from marco_search.store.reads.listing import JobFilter, JobPage, Totals
from marco_search.store.seal import verification


class Reader(Protocol):
    """What the pages need; tests put a fake in its place."""

    def jobs(self, wanted: JobFilter) -> JobPage: ...
    def batches(self) -> list[Totals]: ...
    def tenants(self) -> list[Totals]: ...
    def record(self, job_id: UUID) -> JobRecord: ...
    def verified(self, job_id: UUID) -> JobReport | None: ...
    def node_tokens(self, job_id: UUID, node_id: int) -> dict[str, Any]: ...
    def all_tokens(self, job_id: UUID) -> tuple[dict[int, NodeTokens], Vocabulary]: ...


class PostgresReader:
    """Reads from `database`, which must have been opened read-only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def jobs(self, wanted: JobFilter) -> JobPage:
        """A page of the list."""
        with self._database.transaction() as conn:
            return listing.page(conn, wanted)

    def batches(self) -> list[Totals]:
        """Sums of the latest batches."""
        with self._database.transaction() as conn:
            return listing.batches(conn)

    def tenants(self) -> list[Totals]:
        """Sums of the tenants."""
        with self._database.transaction() as conn:
            return listing.tenants(conn)

    def record(self, job_id: UUID) -> JobRecord:
        """All about a job but its tokens. Raises JobNotFound."""
        with self._database.transaction() as conn:
            return job_record.read(conn, job_id)

    def verified(self, job_id: UUID) -> JobReport | None:
        """The job checked against the chain; None if this login may not read all it takes."""
        with self._database.transaction() as conn:
            # An auditor of some tenants reads views, which are not enough to hash every row.
            enough = reads_tables(conn)
        return verification.verify_job(self._database, job_id) if enough else None

    def node_tokens(self, job_id: UUID, node_id: int) -> dict[str, Any]:
        """A node's tokens and their vocabulary. Raises JobNotFound, also for a node."""
        with self._database.transaction() as conn:
            found = job_record.tokens(conn, job_id, node_id)
        if node_id not in found:
            raise JobNotFound(f"job {job_id} has no node {node_id} with tokens")
        vocabulary = Vocabulary(found.values())
        return {
            "tokens": tokens_json(found[node_id]),
            "vocabulary": vocabulary_json(found.values(), vocabulary),
        }

    def all_tokens(self, job_id: UUID) -> tuple[dict[int, NodeTokens], Vocabulary]:
        """The tokens of every node, and what their candidates read."""
        with self._database.transaction() as conn:
            found = job_record.tokens(conn, job_id)
        return found, Vocabulary(found.values())
