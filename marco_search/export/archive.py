"""Archives: a month's rows as Parquet, with their proofs and links.

One file for each kind of row, with the columns of the canonical form, so that the hashes
can be computed again from the files; `link.parquet` has the chain's links with the hashes;
`manifest.json` lists the files with their SHA-256, and its own is in the chain.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import shutil
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from itertools import groupby, islice, starmap
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from marco_search.audit import canonical
from marco_search.audit.chain import Link
from marco_search.audit.findings import Finding, Report
from marco_search.audit.formats import COMMITS, FORMATS, KEYED, NEWEST
from marco_search.audit.proofs import Kind, Kinds, Rows
from marco_search.audit.verify import Evidence, Redaction, SealedRun, check_job
from marco_search.errors import ArchiveRefused
from marco_search.export.tables import stream, write_parquet
from marco_search.files import digest, write_text
from marco_search.store.db import Conn
from marco_search.store.seal import archives, redactions, verification
from marco_search.store.seal.archives import Month

_ROWS_AT_ONCE = 500

_LINK = Kind(
    table="chain JOIN public.proofs USING (seq)"
    " JOIN (SELECT id AS job_id, salt FROM public.jobs) AS j USING (job_id)"
    " LEFT JOIN (SELECT job_id, commitments, by FROM public.redactions) AS r USING (job_id)",
    job="job_id",
    key="seq",
    columns={
        "job_id": "uuid", "seq": "int8", "kind": "text", "root": "bytea", "previous": "bytea",
        "head": "bytea", "at": "timestamptz", "format": "int2",
        **{f"{kind}s": "int8[]" for kind in KEYED}, "hashes": "bytea", "salt": "uuid",
        "commitments": "bytea", "by": "text",
    },
)  # fmt: skip
KINDS = {**FORMATS[NEWEST].kinds, "link": _LINK}
"""What is written: the columns of the newest format, which has those of all that went before."""
FILES = frozenset(f"{name}.parquet" for name in KINDS)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other command writes to this folder of months inside the block: it waits for its turn.

    Raises ArchiveRefused if the folder can't be made or read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ArchiveRefused(
            f"{folder}: {error.strerror}; name a folder that can be written to"
        ) from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def write(conn: Conn, month: Month, folder: Path) -> str:
    """Write a month to `folder`; its manifest, which is written last.

    Raises ArchiveRefused if an archive of another database is there.
    """
    if (folder / "manifest.json").exists():
        there = archives.parse(read_manifest(folder)).database
        if there not in (None, _database(conn)):
            raise ArchiveRefused(f"{folder}: an archive of another database; name another folder")
    bounds = [month.first, month.before]
    files = {}
    for name, kind in KINDS.items():
        types = dict(kind.columns)
        rows = stream(conn, {n: n for n in types}, types, _source(kind), bounds)
        path = folder / f"{name}.parquet"
        count = write_parquet(path, types, rows)
        files[path.name] = {"rows": count, "sha256": digest(path)}
    about = asdict(month) | {"first": str(month.first), "before": str(month.before)}
    about["end"] = month.end.isoformat()
    return _list(conn, folder, about, files)


def _list(conn: Conn, folder: Path, about: dict[str, Any], files: dict[str, Any]) -> str:
    made = {"format": f"marco-archive {archives.FORMAT}", "database": _database(conn)}
    manifest = json.dumps(made | about | {"files": files}, indent=2)
    write_text(folder / "manifest.json", manifest)
    return manifest


def _database(conn: Conn) -> str | None:
    first = conn.execute("SELECT encode(head, 'hex') FROM public.chain WHERE seq = 0").fetchone()
    return first[0] if first else None


def _source(kind: Kind) -> str:
    """Table, condition on the month and order of a file's rows."""
    job, order = kind.job, ", ".join(filter(None, (kind.job, kind.key)))
    return f"public.{kind.table} WHERE {job} >= %s AND {job} < %s ORDER BY {order}"


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
        for job_id, rows in () if total.findings else _jobs(folder):
            total.add(check_job(_evidence(UUID(job_id), rows)))
    except (
        pa.ArrowException, OSError, LookupError, TypeError, ValueError, OverflowError, struct.error,
    ) as error:  # fmt: skip
        # Arrow raises OSError for pages that can't be read, OverflowError for times after 9999.
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


def _jobs(folder: Path) -> Iterator[tuple[str, dict[str, list[dict[str, Any]]]]]:
    """The rows of each job, in order of its id."""
    files = [_rows(folder, name) for name in KINDS]
    for job_id, group in groupby(heapq.merge(*files, key=itemgetter(0)), itemgetter(0)):
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS}
        for _, name, row in group:
            rows[name].append(row)
        yield job_id, rows


def _rows(folder: Path, name: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Job id, name and row of each row of a file, which is in order of job id."""
    with pq.ParquetFile(folder / f"{name}.parquet") as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            for row in pa.RecordBatch.to_pylist(batch):
                yield row[KINDS[name].job], name, row


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
        apart=True,
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


def beside(folder: Path) -> Path:
    """Where a month is written without some texts, until the chain knows it."""
    return folder.with_name(f"{folder.name}.redacted")


def put_in_place(conn: Conn, folder: Path) -> None:
    """Put what a redaction wrote into the place of a month, if its transaction was committed."""
    new = beside(folder)
    if not new.is_dir():
        return
    if archives.chained_root(conn, read_manifest(new)) is not None:
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    else:
        shutil.rmtree(new)


def redact(
    conn: Conn, folder: Path, job_ids: Sequence[UUID], *, reason: str | None
) -> dict[UUID, int | None]:
    """Replace the texts of jobs of an archived month, here and in files beside it; their links.

    None for one that was redacted before. Once this transaction is committed, `put_in_place` is to
    be called; before, nothing has changed. Raises ArchiveRefused, and as `redactions.redact` does.
    """
    conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    locked = {job_id: redactions.lock(conn, job_id, archived=True) for job_id in job_ids}
    salts = {job_id: salt for job_id, salt in locked.items() if salt is not None}
    links: dict[UUID, int | None] = dict.fromkeys(locked)
    if not salts:
        return links
    if archives.chained_root(conn, read_manifest(folder)) is None:
        raise ArchiveRefused(f"{folder}: the chain knows no archive with this list")
    refuse(f"{folder} does not verify", check_archive(folder).findings)
    stored = {UUID(job_id): rows for job_id, rows in _jobs(folder) if UUID(job_id) in salts}
    manifest = _rewrite(conn, folder, salts, stored)
    refuse(f"{beside(folder)} does not verify", check_archive(beside(folder)).findings)
    for job_id in salts:
        archived = partial(_canonical, stored[job_id])
        link = redactions.redact(conn, job_id, reason=reason, archived=archived)
        links[job_id] = None if link is None else link.seq
    archives.chain(conn, manifest)
    return links


def refuse(what: str, found: Sequence[Finding]) -> None:
    """Raises ArchiveRefused, saying what is wrong, if anything was found."""
    if found:
        raise ArchiveRefused(f"{what}: {found[0]}")


def _rewrite(
    conn: Conn,
    folder: Path,
    salts: Mapping[UUID, bytes],
    stored: Mapping[UUID, Mapping[str, Sequence[dict[str, Any]]]],
) -> str:
    """Write the month without the texts of these jobs beside it; the manifest."""
    who = conn.execute("SELECT session_user::text").fetchone()
    left = {}
    for job_id, salt in salts.items():
        if job_id not in stored:
            raise ArchiveRefused(f"{folder}: it has no job {job_id}")
        one, rows = _sealed(stored[job_id]["link"][-1]), partial(_canonical, stored[job_id])
        assert one.proof is not None, "it was verified"
        kept = redactions.committed(one.link, one.proof, rows, salt)
        left[job_id] = {"salt": None, "commitments": kept, "by": who and who[0]}
    files, new = {}, beside(folder)

    def changed(job: str, name: str, row: dict[str, Any]) -> dict[str, Any]:
        job_id = UUID(job)
        if job_id not in salts:
            return row
        if name != "link":
            return row | _without_texts(row, KINDS[name].columns, salts[job_id])
        unsalted = row.get("format", 1) < COMMITS
        return row | left[job_id] | ({"hashes": b""} if unsalted else {})

    for name, kind in KINDS.items():
        batches = _batches(starmap(changed, _rows(folder, name)), kind.columns)
        path = new / f"{name}.parquet"
        count = write_parquet(path, kind.columns, batches)
        files[path.name] = {"rows": count, "sha256": digest(path)}
    about = json.loads(read_manifest(folder))
    return _list(conn, new, {n: about[n] for n in ("name", "first", "before", "end")}, files)


def _batches(rows: Iterator[dict[str, Any]], names: Iterable[str]) -> Iterator[list[Any]]:
    while part := [tuple(map(row.get, names)) for row in islice(rows, _ROWS_AT_ONCE)]:
        yield part


def _without_texts(row: dict[str, Any], columns: Mapping[str, str], salt: bytes) -> dict[str, Any]:
    """The columns with texts, replaced. JSON is text here."""
    as_json = [n for n, kind in columns.items() if kind == "jsonb" and row.get(n) is not None]
    known = {name: row.get(name) for name in columns} | {n: json.loads(row[n]) for n in as_json}
    new = redactions.row_without_texts(known, salt)
    return {n: json.dumps(v) if isinstance(v, dict) else v for n, v in new.items()}
