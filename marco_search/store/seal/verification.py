"""Verification: fetches what is stored, and has it checked (marco_search.audit.check)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from uuid import UUID

from psycopg.rows import class_row, dict_row

from marco_search.audit.chain import Link, check_link
from marco_search.audit.check import check_job
from marco_search.audit.evidence import Evidence, Rows, Sealed
from marco_search.audit.findings import JobReport
from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.audit.proofs import Kinds, Proof, unpack
from marco_search.errors import JobNotFound
from marco_search.store.db import Conn, Database
from marco_search.store.seal import archives, seals
from marco_search.store.trail import rows


def verify_job(database: Database, job_id: UUID) -> JobReport:
    """Check one job: all its rows, its links and the links right before them.

    The chain as a whole is `verify_all`'s. Raises JobNotFound if neither tables nor chain
    know the job.
    """
    with database.transaction() as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        sealed = sealed_of(conn, [job_id])
        found = by_format(sealed, lambda kinds: rows.of_jobs(conn, [job_id], kinds))
        if not found and not sealed:
            raise JobNotFound(f"no job {job_id}")
        return check_job(
            Evidence(
                job_id=job_id,
                rows=found.get(job_id, {}),
                sealed=sealed.get(job_id, ()),
                archives=archives.covering(archives.listed(conn), job_id),
                visits=shown_visits(conn, [job_id]).get(job_id, {}),
            )
        )


def check_range(conn: Conn, after: UUID | None, last: UUID | None) -> Iterator[JobReport]:
    """Check all jobs with after < id <= last that tables or chain know, in order of id."""
    newest = rows.between(conn, after, last, FORMATS[NEWEST].kinds)
    ids = list(newest)
    sealed = sealed_of(conn, ids)

    def fetch(kinds: Kinds) -> Mapping[UUID, Rows]:
        same = kinds == FORMATS[NEWEST].kinds
        return newest if same else rows.between(conn, after, last, kinds)

    found = by_format(sealed, fetch)
    visits = shown_visits(conn, ids)
    archived = archives.listed(conn)
    for job_id in sorted(ids):
        yield check_job(
            Evidence(
                job_id=job_id,
                rows=found.pop(job_id),
                sealed=sealed.get(job_id, ()),
                archives=archives.covering(archived, job_id),
                visits=visits.get(job_id, {}),
            )
        )


def by_format(
    sealed: Mapping[UUID, Sequence[Sealed]], fetch: Callable[[Kinds], Mapping[UUID, Rows]]
) -> dict[UUID, dict[int, Rows]]:
    """Each job's rows as the formats of its links, and the newest, have them."""
    wanted = {one.link.format for ends in sealed.values() for one in ends} & FORMATS.keys()
    fetched: list[tuple[Kinds, Mapping[UUID, Rows]]] = []
    found: dict[UUID, dict[int, Rows]] = defaultdict(dict)
    for number in sorted(wanted | {NEWEST}):
        kinds = FORMATS[number].kinds
        rows_ = next((there for known, there in fetched if known == kinds), None)
        if rows_ is None:
            rows_ = fetch(kinds)
            fetched.append((kinds, rows_))
        for job_id, its in rows_.items():
            found[job_id][number] = its
    return found


def sealed_of(conn: Conn, job_ids: Sequence[UUID]) -> Mapping[UUID, Sequence[Sealed]]:
    """The links of each job with their proofs, each checked against the link before it."""
    keys = seals.keyed_kinds()
    before = dict[int, Link]()
    with conn.cursor(row_factory=class_row(Link)) as cursor:
        for link in cursor.execute(
            f"SELECT {seals.LINK_COLUMNS} FROM public.chain WHERE seq IN"  # noqa: S608
            " (SELECT seq - 1 FROM public.chain WHERE job_id = ANY (%s))",
            [list(job_ids)],
        ):
            before[link.seq] = link
    found: dict[UUID, list[Sealed]] = defaultdict(list)
    with conn.cursor(row_factory=dict_row, binary=True) as rows_:
        for row in rows_.execute(
            f"SELECT {seals.LINK_COLUMNS}, attempts, events, nodes, rollouts, answers, hashes"  # noqa: S608
            " FROM public.chain LEFT JOIN public.proofs USING (seq)"
            " WHERE job_id = ANY (%s) ORDER BY job_id, seq",
            [list(job_ids)],
        ):
            link = Link(**{name: row[name] for name in seals.LINK_COLUMNS.split(", ")})
            known: dict[str, Sequence[int]] = {"request": (0,), "outcome": (0,)}
            known |= {kind: row[f"{kind}s"] or () for kind in keys}
            found[row["job_id"]].append(
                Sealed(
                    link=link,
                    proof=_proof(known, row["hashes"], link.format),
                    finding=check_link(link, before.get(link.seq - 1)),
                )
            )
    return found


def _proof(keys: Mapping[str, Sequence[int]], packed: bytes | None, number: int) -> Proof | None:
    if not packed or number not in FORMATS:
        return None
    return unpack(keys, packed, FORMATS[number].kinds)


def shown_visits(
    conn: Conn, job_ids: Sequence[UUID]
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
