"""`marco verify`: is everything stored as it was?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marco_search.cli.failures import DOES_NOT_FIT
from marco_search.cli.output import echo, json_option, print_json

if TYPE_CHECKING:
    from marco_search.audit.anchors import Anchor
    from marco_search.audit.findings import Finding, Report
    from marco_search.cli.session import Session

_SHOWN = 20
_file = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Check that nothing stored was changed.")
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All jobs of all tenants (the default).")
@click.option(
    "--anchor", "anchors", multiple=True, type=_file, metavar="FILE",
    help="An anchor kept elsewhere that the chain must still hold; may be given again.",
)  # fmt: skip
@click.option(
    "--archive", "archives", multiple=True, type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER", help="Check an archived month instead; may be given again.",
)  # fmt: skip
@click.option("--public-key", metavar="HEX", help="The key that the anchors must be signed by.")
@click.option(
    "--processes", type=click.IntRange(1, 64), default=2, show_default=True, metavar="N",
    help="Processes that check all jobs.",
)  # fmt: skip
@json_option
def verify(
    jobs: tuple[str, ...], everything: bool, anchors: tuple[Path, ...],
    archives: tuple[Path, ...], public_key: str | None, processes: int, as_json: bool,
) -> None:  # fmt: skip
    """Check JOBs, or all jobs and the whole chain, and name the first row that does not fit.

    Every row of a job that has ended is hashed again and compared with the chain; every
    token's confidence, every path, value, visit count, vote and total is computed again.
    Exits with 9 if anything does not fit, or can't be checked by this version.
    """
    from marco_search.audit import anchors as anchor_files
    from marco_search.cli.session import session
    from marco_search.store.db import require_tables

    if jobs and everything:
        raise click.UsageError("name jobs, or --all, not both")
    if archives and (jobs or everything):
        raise click.UsageError("--archive checks archives only: run verify again for the rest")
    kept = [anchor_files.read(path, public_key=public_key) for path in anchors]
    with session(needs_redis=False) as here:
        with here.database.transaction() as conn:
            require_tables(conn, "`marco verify`")
        against = _against_anchors(here, kept)
        if archives:
            said, found = _verify_archives(here, archives)
        elif jobs:
            said, found = _verify_jobs(here, jobs)
        else:
            said, found = _verify_all(here, processes, quiet=as_json)
    found = [*against, *found]
    if as_json:
        print_json(said | {"fits": not found, "findings": [_json(f) for f in found]})
    else:
        _tell(said, found, kept)
    if found:
        click.get_current_context().exit(DOES_NOT_FIT)


def _against_anchors(here: Session, kept: Sequence[Anchor]) -> list[Finding]:
    from marco_search.store.seal import anchors

    with here.database.transaction() as conn:
        return [finding for anchor in kept for finding in anchors.check(conn, anchor)]


def _verify_jobs(here: Session, words: Sequence[str]) -> tuple[dict[str, Any], list[Finding]]:
    from marco_search.cli import reading
    from marco_search.store.seal.verification import verify_job

    with here.database.transaction() as conn:
        job_ids = reading.find_jobs(conn, words, here.tenant)
    reports = [verify_job(here.database, job_id) for job_id in dict.fromkeys(job_ids)]
    said = {
        "jobs": [
            {
                "job_id": str(report.job_id),
                "status": str(report.status),
                "seq": report.seq,
                "root": report.root,
                "nodes": report.nodes,
                "rollouts": report.rollouts,
            }
            for report in reports
        ]
    }
    return said, [finding for report in reports for finding in report.findings]


def _verify_all(
    here: Session, processes: int, *, quiet: bool
) -> tuple[dict[str, Any], list[Finding]]:
    from marco_search.locations import database_url
    from marco_search.store.seal.verify_all import verify_all

    def progress(done: int, total: int) -> None:
        click.echo(f"\r{done:,} of {total:,} jobs", nl=False, err=True)

    show = not quiet and sys.stderr.isatty()
    tell = progress if show else None
    report = verify_all(database_url(here.settings), processes=processes, on_progress=tell)
    if show:
        click.echo("\r\033[K", nl=False, err=True)
    return _numbers([report]), list(report.findings)


def _verify_archives(
    here: Session, folders: Sequence[Path]
) -> tuple[dict[str, Any], list[Finding]]:
    from marco_search.audit.findings import Finding
    from marco_search.export.archive import check_archive, read_manifest
    from marco_search.store.seal import archives

    found: list[Finding] = []
    reports = []
    for folder in folders:
        with here.database.transaction() as conn:
            known = archives.chained_root(conn, read_manifest(folder))
        if known is None:
            what = "the chain knows no archive with this list"
            found.append(Finding("manifest.json", str(folder), what, "a link", "none"))
        reports.append(check_archive(folder))
        found += reports[-1].findings
    return _numbers(reports), found


def _numbers(reports: Sequence[Report]) -> dict[str, Any]:
    counts = ("jobs", "open_jobs", "archived_jobs", "nodes", "rollouts", "links")
    said: dict[str, Any] = {name: sum(getattr(r, name) for r in reports) for name in counts}
    return said | {"seconds": round(sum(r.seconds for r in reports), 3)}


def _tell(said: dict[str, Any], found: Sequence[Finding], kept: Sequence[Anchor]) -> None:
    if isinstance(said["jobs"], list):
        for job in said["jobs"]:
            link = "not in the chain yet" if job["seq"] is None else f"link {job['seq']}"
            numbers = f"nodes: {job['nodes']:,}, rollouts: {job['rollouts']:,}, {link}"
            echo(f"{job['job_id']}  {job['status']}  {numbers}")
    else:
        echo(
            f"Jobs: {said['jobs']:,} ({said['open_jobs']:,} not ended,"
            f" {said['archived_jobs']:,} archived). Nodes: {said['nodes']:,}."
            f" Rollouts: {said['rollouts']:,}. Links: {said['links']:,}. {said['seconds']:.1f} s."
        )
    for anchor in kept:
        signed = f", signed by {anchor.public_key}" if anchor.public_key else ", not signed"
        echo(f"Anchor of {anchor.made_at}: link {anchor.seq}{signed}")
    wrong = [finding for finding in found if not finding.unknown]
    unknown = [finding for finding in found if finding.unknown]
    if wrong:
        echo(f"Does not fit, first {wrong[0]}")
        for finding in wrong[1:_SHOWN]:
            echo(f"  then {finding}")
        if len(wrong) > _SHOWN:
            echo(f"  and {len(wrong) - _SHOWN:,} more")
    if unknown:
        echo(f"This version can't check {len(unknown):,} links, first {unknown[0]}")
    if not found:
        echo("Everything fits.")


def _json(finding: Finding) -> dict[str, Any]:
    return {
        "table": finding.table,
        "key": finding.key,
        "what": finding.what,
        "expected": finding.expected,
        "found": finding.found,
        "unknown_format": finding.unknown,
        "job_id": None if finding.job_id is None else str(finding.job_id),
    }
