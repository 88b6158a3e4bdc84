"""Verification: fetches what is stored, and has it checked (marco_search.audit.verify)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from uuid import UUID

from psycopg.rows import class_row, dict_row

from marco_search.audit.chain import Link, check_link
from marco_search.audit.findings import JobReport
from marco_search.audit.formats import FORMATS, KEYED, NEWEST
from marco_search.audit.proofs import Proof, unpack
from marco_search.audit.verify import Evidence, SealedRun, check_job
from marco_search.errors import JobNotFound
from marco_search.store.db import Conn, Database
from marco_search.store.seal import archives
from marco_search.store.trail import rows


def verify_job(database: Database, job_id: UUID) -> JobReport:
    """Check one job: all its rows, its links and the links right before them.

    The chain as a whole is `verify_all`'s. Raises JobNotFound if neither tables nor chain
    know the job.
    """
    with database.transaction() as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for report in _check(conn, rows.of_jobs([job_id]), [job_id]):
            return report
    raise JobNotFound(f"no job {job_id}")


def check_range(conn: Conn, after: UUID | None, last: UUID | None) -> Iterator[JobReport]:
    """Check all jobs with after < id <= last that the tables know, in order of id."""
    return _check(conn, rows.between(after, last))


def _check(conn: Conn, where: rows.Where, also: Collection[UUID] = ()) -> Iterator[JobReport]:
    """Reports on the jobs with such rows, and on those of `also` that the chain has."""
    newest = FORMATS[NEWEST].kinds
    found = rows.read(conn, newest, where)
    sealed = _sealed_runs(conn, {*found, *also})
    formats = {run.link.format for runs in sealed.values() for run in runs} & FORMATS.keys()
    by_format = {
        number: found if kinds == newest else rows.read(conn, kinds, where)
        for number in sorted(formats | {NEWEST})
        for kinds in [FORMATS[number].kinds]
    }
    visits = _shown_visits(conn, found)
    archived = archives.listed(conn)
    for job_id in sorted(found.keys() | sealed.keys()):
        yield check_job(
            Evidence(
                job_id=job_id,
                rows={number: its.get(job_id, {}) for number, its in by_format.items()},
                sealed=sealed.get(job_id, ()),
                archives=[a for a in archived if a.first <= job_id < a.before],
                visits=visits.get(job_id, {}),
            )
        )


def _sealed_runs(conn: Conn, job_ids: Collection[UUID]) -> Mapping[UUID, list[SealedRun]]:
    """The links of each job with their proofs, each checked against the link before it."""
    with conn.cursor(row_factory=class_row(Link)) as cursor:
        links = cursor.execute(
            "SELECT * FROM public.chain WHERE seq IN ("
            " SELECT unnest(ARRAY[seq, seq - 1]) FROM public.chain WHERE job_id = ANY (%s)"
            ") ORDER BY seq",
            [list(job_ids)],
        ).fetchall()
    with conn.cursor(row_factory=dict_row, binary=True) as kept:
        seqs = [link.seq for link in links]
        kept.execute("SELECT * FROM public.proofs WHERE seq = ANY (%s)", [seqs])
        proofs = {row["seq"]: row for row in kept}
    by_seq = {link.seq: link for link in links}
    found: dict[UUID, list[SealedRun]] = defaultdict(list)
    for link in links:
        if link.job_id in job_ids and link.job_id is not None:
            proof = proof_from(proofs.get(link.seq), link.format)
            finding = check_link(link, by_seq.get(link.seq - 1))
            found[link.job_id].append(SealedRun(link=link, proof=proof, finding=finding))
    return found


def proof_from(row: Mapping[str, Any] | None, number: int) -> Proof | None:
    """The proof in a row of proofs, if there is one and its format is known."""
    if row is None or number not in FORMATS:
        return None
    keys = {kind: row[f"{kind}s"] for kind in KEYED}
    return unpack(keys, row["hashes"], FORMATS[number].kinds)


def _shown_visits(
    conn: Conn, job_ids: Collection[UUID]
) -> Mapping[UUID, Mapping[int, tuple[int, float]]]:
    """Visit counts and values as the view shows them, by job and node."""
    shown: dict[UUID, dict[int, tuple[int, float]]] = defaultdict(dict)
    with conn.cursor(binary=True) as cursor:
        for job_id, node_id, visits, value in cursor.execute(
            "SELECT job_id, node_id, visits, value FROM audit.node_stats WHERE job_id = ANY (%s)",
            [list(job_ids)],
        ):
            shown[job_id][node_id] = (visits, value)
    return shown
