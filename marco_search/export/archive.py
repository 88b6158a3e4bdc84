"""Archives: a month's rows as Parquet, with the proofs and links that vouch for them.

One file for each kind of row, with the columns of the canonical form, so that the hashes
can be computed again from the files; `link.parquet` has the chain's links with the hashes;
`manifest.json` lists the files with their SHA-256, and its own is in the chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.errors import ArchiveRefused
from marco_search.export import parquet
from marco_search.export.files import whole
from marco_search.export.tables import Column
from marco_search.store.db import Conn
from marco_search.store.seal import archives, seals
from marco_search.store.seal.archives import Month

_ROWS_AT_ONCE = 1000
_ARROW = {
    "bool": "bool", "int2": "int16", "int4": "int32", "int8": "int64", "float4": "float32",
    "float8": "float64", "text": "string", "jsonb": "json", "uuid": "string",
    "timestamptz": "time",
}  # fmt: skip

KINDS = FORMATS[NEWEST].kinds
"""What is written: the columns of the newest format, which has those of all that went before."""

LINKS = {
    name: Column(f"c.{name}", kind)
    for name, kind in (
        ("job_id", "string"), ("seq", "int64"), ("kind", "string"), ("root", "binary"),
        ("previous", "binary"), ("head", "binary"), ("at", "time"), ("format", "int16"),
    )
} | {
    f"{kind}s": Column(f"p.{kind}s", "list<int64>") for kind in seals.keyed_kinds()
} | {"hashes": Column("p.hashes", "binary")}  # fmt: skip
"""Columns of link.parquet."""


def columns_of(kind: str) -> dict[str, Column]:
    """The columns of a kind's file: those of its canonical form."""
    found = {}
    for name, stored in KINDS[kind].columns.items():
        arrow = f"list<{_ARROW[stored[:-2]]}>" if stored.endswith("[]") else _ARROW[stored]
        cast = "::text" if stored in ("jsonb", "uuid") else ""
        found[name] = Column(f"{name}{cast}", arrow)
    return found


def write(conn: Conn, month: Month, folder: Path) -> str:
    """Write a month to `folder`; its manifest, which is written last."""
    names = {f"{kind}.parquet": columns_of(kind) for kind in KINDS} | {"link.parquet": LINKS}
    files = {}
    for name, columns in names.items():
        rows = _links(conn, month) if name == "link.parquet" else _rows(conn, name[:-8], month)
        count = parquet.write(folder / name, columns, rows)
        files[name] = {"rows": count, "sha256": digest(folder / name)}
    first = conn.execute("SELECT encode(head, 'hex') FROM public.chain WHERE seq = 0").fetchone()
    about = asdict(month) | {"first": str(month.first), "before": str(month.before)}
    about["end"] = month.end.isoformat()
    made = {"format": f"marco-archive {archives.FORMAT}", "database": first and first[0]}
    data = made | about | {"files": files}
    manifest = json.dumps(data, indent=2)
    with whole(folder / "manifest.json") as part:
        part.write_text(manifest, encoding="utf-8")
    return manifest


def _rows(conn: Conn, kind: str, month: Month) -> Iterator[Sequence[tuple[Any, ...]]]:
    spec = KINDS[kind]
    chosen = ", ".join(column.sql for column in columns_of(kind).values())
    order = ", ".join(filter(None, (spec.job, spec.key)))
    query = (
        f"SELECT {chosen} FROM public.{spec.table} WHERE {spec.job} >= %s AND {spec.job} < %s"  # noqa: S608
        f" ORDER BY {order}"
    )
    return _stream(conn, query, month)


def _links(conn: Conn, month: Month) -> Iterator[Sequence[tuple[Any, ...]]]:
    chosen = ", ".join(column.sql for column in LINKS.values()).replace("c.job_id", "job_id::text")
    query = (
        f"SELECT {chosen} FROM public.chain AS c JOIN public.proofs AS p USING (seq)"  # noqa: S608
        " WHERE job_id >= %s AND job_id < %s ORDER BY c.job_id, seq"
    )
    return _stream(conn, query, month)


def _stream(conn: Conn, query: str, month: Month) -> Iterator[Sequence[tuple[Any, ...]]]:
    with conn.cursor("archive", binary=True) as cursor:
        cursor.execute(query.encode(), [month.first, month.before])
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            yield rows


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
            f"{folder}: no archive: it has no manifest.json that can be read; name the folder of "
            "one month, such as archive/2026-08"
        ) from None
