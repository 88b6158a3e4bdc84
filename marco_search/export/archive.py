"""Archives: a month's rows as Parquet, with their proofs and links.

One file for each kind of row, with the columns of the canonical form, so that the hashes
can be computed again from the files; `link.parquet` has the chain's links with the hashes;
`manifest.json` lists the files with their SHA-256, and its own is in the chain.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from marco_search.audit import canonical
from marco_search.audit.chain import Link
from marco_search.audit.findings import Finding, JobReport, Report
from marco_search.audit.formats import FORMATS, KEYED, NEWEST
from marco_search.audit.proofs import Kinds, Rows
from marco_search.audit.verify import Evidence, Redaction, SealedRun, check_job
from marco_search.errors import ArchiveRefused
from marco_search.export import parquet
from marco_search.export.files import whole
from marco_search.export.tables import stream
from marco_search.store.db import Conn
from marco_search.store.seal import archives, verification
from marco_search.store.seal.archives import Month

_ROWS_AT_ONCE = 500

KINDS = FORMATS[NEWEST].kinds
"""What is written: the columns of the newest format, which has those of all that went before."""
LINKS = {
    "job_id": "uuid", "seq": "int8", "kind": "text", "root": "bytea", "previous": "bytea",
    "head": "bytea", "at": "timestamptz", "format": "int2",
    **{f"{kind}s": "int8[]" for kind in KEYED}, "hashes": "bytea", "salt": "uuid",
    "commitments": "bytea", "by": "text",
}  # fmt: skip
"""Columns of link.parquet, and their Postgres types."""
_LINKED = (
    "chain JOIN public.proofs USING (seq)"
    " JOIN (SELECT id AS job_id, salt FROM public.jobs) AS j USING (job_id)"
    " LEFT JOIN (SELECT job_id, commitments, by FROM public.redactions) AS r USING (job_id)"
)
FILES = frozenset(f"{name}.parquet" for name in (*KINDS, "link"))


def write(conn: Conn, month: Month, folder: Path) -> str:
    """Write a month to `folder`; its manifest, which is written last."""
    bounds = [month.first, month.before]
    files = {}
    for name in (*KINDS, "link"):
        types = LINKS if name == "link" else dict(KINDS[name].columns)
        rows = stream(conn, {n: n for n in types}, types, _source(name), bounds)
        path = folder / f"{name}.parquet"
        count = parquet.write(path, types, rows)
        files[path.name] = {"rows": count, "sha256": digest(path)}
    first = conn.execute("SELECT encode(head, 'hex') FROM public.chain WHERE seq = 0").fetchone()
    about = asdict(month) | {"first": str(month.first), "before": str(month.before)}
    about["end"] = month.end.isoformat()
    made = {"format": f"marco-archive {archives.FORMAT}", "database": first and first[0]}
    manifest = json.dumps(made | about | {"files": files}, indent=2)
    with whole(folder / "manifest.json") as part:
        part.write_text(manifest, encoding="utf-8")
    return manifest


def _source(name: str) -> str:
    """Table, condition on the month and order of a file's rows."""
    if name == "link":
        table, job, order = _LINKED, "job_id", "job_id, seq"
    else:
        kind = KINDS[name]
        table, job = kind.table, kind.job
        order = f"{job}, {kind.key}" if kind.key else job
    return f"public.{table} WHERE {job} >= %s AND {job} < %s ORDER BY {order}"


def digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> str:
    """The list of an archive, word for word. Raises ArchiveRefused."""
    try:
        return (folder / "manifest.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ArchiveRefused(
            f"{folder}: not an archive: no readable manifest.json; name the folder of one month, "
            "such as archive/2026-08"
        ) from None


def check_archive(folder: Path) -> Report:
    """Check an archive by itself: its files against its list, every job as `marco verify` would.

    Whether its list is the one in the chain is for `archives.chained_root`. Raises
    ArchiveRefused if the folder is not an archive.
    """
    began = time.perf_counter()
    files = archives.parse(read_manifest(folder)).files
    total = Report(findings=tuple(_check_files(folder, files)))
    try:
        for report in () if total.findings else _check_jobs(folder):
            total.add(report)
    except (pa.ArrowException, LookupError, TypeError, ValueError, struct.error) as error:
        wrong = Finding("archive", str(folder), "not readable", "its rows", str(error))
        total.findings += (wrong,)
    for name in sorted({path.name for path in folder.iterdir()} - FILES - {"manifest.json"}):
        what = "the file is not in the list"
        total.findings += (Finding("archive", name, what, "a file of the list", "another"),)
    total.archived_jobs, total.open_jobs = total.jobs, 0
    total.links = files["link.parquet"].rows if "link.parquet" in files else 0
    total.seconds = time.perf_counter() - began
    return total


def _check_files(folder: Path, files: Mapping[str, archives.File]) -> Iterator[Finding]:
    for name in sorted(FILES | files.keys()):
        path = folder / name
        if name not in FILES:
            yield Finding("archive", name, "no such file is written", "none", "a file of the list")
        elif name not in files or not path.is_file():
            yield Finding("archive", name, "the file is gone", "a file of the list", "none")
        elif digest(path) != files[name].sha256:
            expected = f"SHA-256 {files[name].sha256[:16]}"
            yield Finding("archive", name, "the file was changed", expected, digest(path)[:16])


def _check_jobs(folder: Path) -> Iterator[JobReport]:
    kinds = {name: kind.job for name, kind in KINDS.items()} | {"link": "job_id"}
    files = [_rows(folder, name, job) for name, job in kinds.items()]
    for job_id, group in groupby(heapq.merge(*files, key=itemgetter(0)), itemgetter(0)):
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
        for _, name, row in group:
            rows[name].append(row)
        yield check_job(_evidence(UUID(job_id), rows))


def _rows(folder: Path, name: str, job: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Job id, name and row of each row of a file, which is in order of job id."""
    with pq.ParquetFile(folder / f"{name}.parquet") as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            for row in pa.RecordBatch.to_pylist(batch):
                yield row[job], name, row


def _evidence(job_id: UUID, rows: Mapping[str, Sequence[dict[str, Any]]]) -> Evidence:
    sealed = tuple(map(_sealed, rows["link"]))
    wanted = {one.link.format for one in sealed} & FORMATS.keys() | {NEWEST}
    link = rows["link"][-1] if rows["link"] else {}
    salt, kept = link.get("salt"), link.get("commitments")
    return Evidence(
        job_id=job_id,
        rows={number: _canonical(rows, FORMATS[number].kinds) for number in wanted},
        sealed=sealed,
        salt=salt and UUID(salt).bytes,
        redaction=None if kept is None else Redaction(by=link["by"], commitments=kept),
    )


def _canonical(rows: Mapping[str, Sequence[dict[str, Any]]], kinds: Kinds) -> Rows:
    """A job's rows in the columns of a format; a column that did not exist yet is null."""
    return {
        name: [
            (
                row[kind.key] if kind.key else 0,
                canonical.encode(kind.columns, [row.get(column) for column in kind.columns]),
            )
            for row in rows[name]
        ]
        for name, kind in kinds.items()
    }


def _sealed(row: dict[str, Any]) -> SealedRun:
    # Files of format 1 have no column for it.
    values = row | {"job_id": UUID(row["job_id"]), "format": row.get("format", 1)}
    link = Link(**{field.name: values[field.name] for field in fields(Link)})
    finding = None
    if link.format in FORMATS and link.head != link.expected_head:
        head = link.expected_head.hex()[:16]
        finding = Finding("link.parquet", f"seq {link.seq}", "head", head, link.head.hex()[:16])
    return SealedRun(link=link, proof=verification.proof_from(row, link.format), finding=finding)
