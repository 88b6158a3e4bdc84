"""Verifies an archive: its files against its list, its rows against proofs and links."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from marco_search.audit import canonical
from marco_search.audit.chain import Link
from marco_search.audit.check import check_job
from marco_search.audit.evidence import Evidence, Rows, Sealed
from marco_search.audit.findings import Finding, JobReport, Report
from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.audit.proofs import Kinds, unpack
from marco_search.export.archive import KINDS, digest, read_manifest
from marco_search.store.seal import archives, seals

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
    try:
        for report in () if findings else _check_jobs(folder):
            findings += report.findings
            jobs, nodes = jobs + 1, nodes + report.nodes
            rollouts += report.rollouts
    except (pa.ArrowException, LookupError, TypeError, ValueError, struct.error) as error:
        findings.append(Finding("archive", str(folder), "not readable", "its rows", str(error)))
    findings += _unlisted(folder)
    return Report(
        jobs=jobs,
        open_jobs=0,
        archived_jobs=jobs,
        nodes=nodes,
        rollouts=rollouts,
        links=listed["files"].get("link.parquet", {"rows": 0})["rows"],
        seconds=time.perf_counter() - began,
        findings=tuple(findings),
    )


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    known = {*(f"{kind}.parquet" for kind in KINDS), "link.parquet"}
    for name in sorted(known | files.keys()):
        path = folder / name
        if name not in known:
            yield Finding("archive", name, "no such file is written", "none", "a file of the list")
        elif name not in files or not path.is_file():
            yield Finding("archive", name, "the file is gone", "a file of the list", "none")
        elif digest(path) != files[name]["sha256"]:
            expected = f"SHA-256 {files[name]['sha256'][:16]}"
            yield Finding("archive", name, "the file was changed", expected, digest(path)[:16])


def _unlisted(folder: Path) -> Iterator[Finding]:
    known = {*(f"{kind}.parquet" for kind in KINDS), "link.parquet", "manifest.json"}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            what = "nothing vouches for the file"
            yield Finding("archive", path.name, what, "a file of the list", "another")


def _check_jobs(folder: Path) -> Iterator[JobReport]:
    streams = {kind: _Groups(_grouped(folder, kind, spec.job)) for kind, spec in KINDS.items()}
    links = _Groups(_grouped(folder, "link", "job_id"))
    for job_id, request in streams.pop("request"):
        values = {"request": request}
        values |= {kind: stream.of(job_id) for kind, stream in streams.items()}
        yield check_job(_evidence(job_id, values, links.of(job_id)))


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


def _evidence(
    job_id: UUID, values: Mapping[str, Sequence[Mapping[str, Any]]], links: Sequence[dict[str, Any]]
) -> Evidence:
    sealed = tuple(map(_sealed, links))
    wanted = {one.link.format for one in sealed} & FORMATS.keys() | {NEWEST}
    return Evidence(
        job_id=job_id,
        rows={number: _canonical(values, FORMATS[number].kinds) for number in wanted},
        sealed=sealed,
    )


def _canonical(values: Mapping[str, Sequence[Mapping[str, Any]]], kinds: Kinds) -> Rows:
    """A job's rows in the columns of a format; one that was not written yet is null."""
    return {
        name: [
            (
                row[kind.key] if kind.key else 0,
                canonical.encode(kind.columns, [row.get(column) for column in kind.columns]),
            )
            for row in values[name]
        ]
        for name, kind in kinds.items()
    }


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
        format=row.get("format", 1),  # files of format 1 have no such column
    )
    keys = {"request": [0], "outcome": [0]}
    keys |= {kind: row[f"{kind}s"] for kind in seals.keyed_kinds()}
    known = link.format in FORMATS
    finding = None
    if known and link.head != link.expected_head:
        head = link.expected_head.hex()[:16]
        finding = Finding("link.parquet", f"seq {link.seq}", "head", head, link.head.hex()[:16])
    proof = unpack(keys, row["hashes"], FORMATS[link.format].kinds) if known else None
    return Sealed(link=link, proof=proof, finding=finding)
