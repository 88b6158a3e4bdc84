"""`marco archive`: old trees out of the database, into files that prove themselves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from marco_search.cli.output import echo, json_option, print_json

if TYPE_CHECKING:
    from marco_search.audit.findings import Finding
    from marco_search.cli.session import Session
    from marco_search.store.db import Conn
    from marco_search.store.seal.archives import Month


@click.command(short_help="Move months of trees from the database to Parquet files.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--before", required=True, type=click.DateTime(["%Y-%m", "%Y-%m-%d"]), metavar="DATE",
    help="Months that ended by then, UTC: 2026-11 or 2026-11-01.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would be archived.")
@json_option
def archive(folder: Path, before: datetime, dry_run: bool, as_json: bool) -> None:
    """Write whole months of jobs to FOLDER/YYYY-MM, check what was written, then drop their trees.

    Nodes, rollouts and answers leave the database; jobs, attempts, the log and the chain stay,
    and `marco verify` still passes. `marco verify --archive FOLDER/YYYY-MM` checks the files.
    A month with jobs that have not ended, or with a row that does not fit, is refused.

    \b
    marco archive /srv/archive --before 2026-11 --dry-run
    """
    from marco_search.cli.session import session
    from marco_search.errors import ArchiveRefused
    from marco_search.store.seal import archives

    until = before.replace(tzinfo=UTC)
    if until > datetime.now(UTC):
        raise ArchiveRefused(f"--before {until:%Y-%m-%d} is in the future: months must be over")
    said: list[dict[str, Any]] = []
    with session(needs_redis=False) as here:
        with here.database.transaction() as conn:
            found = archives.months(conn, until)
            for month in found:
                archives.require_ended(conn, month)
            counts = {month.name: _counts(conn, month) for month in found}
        for month in found:
            path = folder / month.name
            link = None if dry_run else _archive(here, month, path)
            said.append(
                {"month": month.name, "folder": str(path), "link": link} | counts[month.name]
            )
    if as_json:
        print_json({"months": said, "dry_run": dry_run})
        return
    for line in said:
        what = "would be archived" if dry_run else f"archived, link {line['link']} of the chain"
        counted = f"jobs: {line['jobs']:,}, nodes: {line['nodes']:,}"
        echo(f"{line['month']}: {counted}: {what}: {line['folder']}")
    if not said:
        echo(f"No month before {until:%Y-%m-%d} has anything to archive.")


def _counts(conn: Any, month: Month) -> dict[str, int]:
    row = conn.execute(
        "SELECT count(*), coalesce(sum(nodes), 0) FROM public.jobs WHERE id >= %s AND id < %s",
        [month.first, month.before],
    ).fetchone()
    return {"jobs": row[0], "nodes": int(row[1])}


def _findings(conn: Conn, month: Month) -> Iterator[Finding]:
    """What does not fit in the month's jobs, before anything of them is moved."""
    from marco_search.store.seal.verification import check_range
    from marco_search.store.seal.verify_all import ranges_of

    low, high = (UUID(int=bound.int - 1) for bound in (month.first, month.before))
    jobs = conn.execute(
        "SELECT id, nodes FROM public.jobs WHERE id > %s AND id <= %s ORDER BY id", [low, high]
    ).fetchall()
    for part in ranges_of(jobs, low, high):
        for report in check_range(conn, *part):
            yield from report.findings


def _archive(here: Session, month: Month, path: Path) -> int:
    from marco_search.errors import ArchiveRefused
    from marco_search.export import archive as files
    from marco_search.store.db import allow
    from marco_search.store.seal import archives

    def refuse(found: list[Finding]) -> None:
        if found:
            raise ArchiveRefused(f"{month.name} is not archived: {found[0]}")

    with here.database.connect() as conn, conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        allow(conn, None)
        conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        refuse(list(_findings(conn, month)))
        manifest = files.write(conn, month, path)
    refuse(list(files.check_archive(path).findings))
    with here.database.transaction() as conn:
        allow(conn, None)
        return archives.drop(conn, month, manifest)
