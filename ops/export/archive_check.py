"""Verifies an archive: its files against its list, its rows against proofs and links."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from marco_search.audit import canonical
from marco_search.audit.chain import Link
from marco_search.audit.check import Evidence, Sealed, check_job
from marco_search.audit.findings import Finding, Report
from marco_search.audit.proofs import KINDS, Row, unpack
from marco_search.store import archives, seals
from ops.export.archive import digest, read_manifest

_ROWS_AT_ONCE = 500


def check_archive(folder: Path) -> Report:
    """Check an archive by itself: every job as `marco verify` would.

    That its list is the one in the chain is `archives.chained_root`'s to say. Raises
    ArchiveRefused if the folder is no archive.
    """
    began = time.perf_counter()
    listed = archives.parse(read_manifest(folder))
    findings = list(_check_files(folder, listed["files"]))
    jobs = nodes = rollouts = 0
    if not findings:
        streams = {kind: _by_job(folder, kind) for kind in KINDS}
        links = _Groups(_grouped(folder, "link", "job_id"))
        for job_id, request in streams.pop("request"):
            rows: dict[str, list[Row]] = {"request": request}
            rows |= {kind: stream.of(job_id) for kind, stream in streams.items()}
            sealed = tuple(_sealed(row) for row in links.of(job_id))
            report = check_job(Evidence(job_id=job_id, rows=rows, sealed=sealed))
            findings += report.findings
            jobs, nodes = jobs + 1, nodes + report.nodes
            rollouts += report.rollouts
    return Report(
        jobs=jobs,
        open_jobs=0,
        archived_jobs=jobs,
        nodes=nodes,
        rollouts=rollouts,
        links=listed["files"]["link.parquet"]["rows"],
        seconds=time.perf_counter() - began,
        findings=tuple(findings),
    )


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for name in (*(f"{kind}.parquet" for kind in KINDS), "link.parquet"):
        path = folder / name
        if name not in files or not path.is_file():
            yield Finding("archive", name, "the file is gone", "a file of the list", "none")
        elif digest(path) != files[name]["sha256"]:
            expected = f"SHA-256 {files[name]['sha256'][:16]}"
            yield Finding("archive", name, "the file was changed", expected, digest(path)[:16])


class _Groups:
    """Groups in order of job id, asked for in that order; a job may have none."""

    def __init__(self, groups: Iterator[tuple[UUID, list[Any]]]) -> None:
        self._groups = groups
        self._next = next(groups, None)

    def of(self, job_id: UUID) -> list[Any]:
        """The group of this job."""
        if self._next is None or self._next[0] != job_id:
            return []
        found = self._next[1]
        self._next = next(self._groups, None)
        return found

    def __iter__(self) -> Iterator[tuple[UUID, list[Any]]]:
        while self._next is not None:
            job_id = self._next[0]
            yield job_id, self.of(job_id)


def _by_job(folder: Path, kind: str) -> _Groups:
    """The canonical rows of a kind, by job."""
    spec = KINDS[kind]

    def encoded() -> Iterator[tuple[UUID, list[Row]]]:
        for job_id, rows in _grouped(folder, kind, spec.job):
            yield (
                job_id,
                [
                    (
                        row[spec.key] if spec.key else 0,
                        canonical.encode(spec.columns, [*row.values()]),
                    )
                    for row in rows
                ],
            )

    return _Groups(encoded())


def _grouped(folder: Path, name: str, job: str) -> Iterator[tuple[UUID, list[dict[str, Any]]]]:
    def rows() -> Iterator[dict[str, Any]]:
        with pq.ParquetFile(folder / f"{name}.parquet") as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                yield from pa.RecordBatch.to_pylist(batch)

    for job_id, group in groupby(rows(), itemgetter(job)):
        yield UUID(job_id), list(group)


def _sealed(row: dict[str, Any]) -> Sealed:
    link = Link(
        seq=row["seq"],
        kind=row["kind"],
        job_id=UUID(row["job_id"]),
        root=row["root"],
        previous=row["previous"],
        head=row["head"],
        at=row["at"],
    )
    keys = {"request": [0], "outcome": [0]}
    keys |= {kind: row[f"{kind}s"] for kind in seals.keyed_kinds()}
    finding = None
    if link.head != link.expected_head:
        head = link.expected_head.hex()[:16]
        finding = Finding("link.parquet", f"seq {link.seq}", "head", head, link.head.hex()[:16])
    return Sealed(link=link, proof=unpack(keys, row["hashes"]), finding=finding)
