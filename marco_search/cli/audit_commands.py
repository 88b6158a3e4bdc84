"""Commands for auditors: verify, anchor, export, archive, redact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import click

from marco_search.audit import anchors as anchor_files
from marco_search.audit.findings import Finding, JobReport, Report
from marco_search.cli import options, output
from marco_search.cli.options import FILE, FOLDER, Moment, command, which_jobs
from marco_search.cli.session import Session, session
from marco_search.errors import InvalidSettings, RedactionRefused
from marco_search.export.tables import TABLES, write
from marco_search.locations import database_url
from marco_search.store.db import allow, require_tables
from marco_search.store.seal import archives, redactions, seals
from marco_search.store.seal.archives import Month
from marco_search.store.seal.verification import check_month, verify_all, verify_job
from marco_search.text import counted

_SHOWN = 20
_COUNTS = (
    "Jobs: {jobs:,} ({open_jobs:,} not ended, {archived_jobs:,} archived,"
    " {redacted_jobs:,} redacted). Nodes: {nodes:,}."
    " Rollouts: {rollouts:,}. Links: {links:,}. {seconds:.1f} s."
)


@command()
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All jobs of all tenants (the default).")
@click.option(
    "--anchor", "anchors", multiple=True, type=FILE, metavar="FILE",
    help="An anchor kept elsewhere that the chain must match; repeatable.",
)  # fmt: skip
@click.option(
    "--archive", "archives", multiple=True, type=FOLDER,
    metavar="FOLDER", help="Check an archived month instead; repeatable.",
)  # fmt: skip
@click.option(
    "--public-key", metavar="HEX", help="The public key that the anchors must be signed with."
)
@click.option(
    "--processes", type=click.IntRange(1, 64), default=2, metavar="N",
    help="Number of processes to check all jobs with.",
)  # fmt: skip
def verify(
    jobs: tuple[str, ...], everything: bool, anchors: tuple[Path, ...],
    archives: tuple[Path, ...], public_key: str | None, processes: int,
) -> None:  # fmt: skip
    """Check JOBs, or all jobs and the whole chain, and name the first row that does not match.

    Every row of a job that has ended is hashed again and compared with the chain; every
    token's confidence, every path, value, visit count, vote and total is computed again.
    Exits with 9 if anything does not match, or can't be checked by this version.
    """
    if jobs and everything:
        raise click.UsageError("name jobs, or --all, not both")
    if archives and (jobs or everything):
        raise click.UsageError("--archive checks archives only: run verify again for the rest")
    if public_key is not None and not anchors:
        raise click.UsageError("--public-key needs --anchor: it is anchors that are signed")
    kept = [anchor_files.read(path, public_key=public_key) for path in anchors]
    with session(needs_redis=False) as here:
        with here.database.transaction() as conn:
            require_tables(conn, "`marco verify`")
            found = [f for anchor in kept for f in seals.check_anchor(conn, anchor)]
        checked: Sequence[JobReport | Report]
        if jobs:
            named = dict.fromkeys(here.find(jobs, everywhere=True))
            checked = reports = [verify_job(here.database, job_id) for job_id in named]
            counted: dict[str, Any] = {"jobs": list(map(_without_findings, reports))}
            lines = list(map(_job_line, reports))
        else:
            checked = _archives(here, archives, found) if archives else [_all(here, processes)]
            names = _without_findings(Report())
            counted = {n: round(sum(getattr(r, n) for r in checked), 3) for n in names}
            lines = [_COUNTS.format(**counted)]
        found += [finding for report in checked for finding in report.findings]
    for anchor in kept:
        signed = f"signed by {anchor.public_key}" if anchor.public_key else "not signed"
        lines.append(f"Anchor of {anchor.made_at}: link {anchor.seq}, {signed}")
    findings = [asdict(finding) for finding in found]
    for finding in findings:
        finding["unknown_format"] = finding.pop("unknown")
    data = counted | {"ok": not found, "findings": findings}
    output.report(data, *lines, *_finding_lines(found))
    if found:
        click.get_current_context().exit(output.DOES_NOT_FIT)


def _without_findings(report: JobReport | Report) -> dict[str, Any]:
    return {name: value for name, value in asdict(report).items() if name != "findings"}


def _job_line(job: JobReport) -> str:
    link = "not in the chain yet" if job.seq is None else f"link {job.seq}"
    text = f"{job.job_id}  {job.status}  nodes: {job.nodes:,}, rollouts: {job.rollouts:,}, {link}"
    if job.redacted and not job.proved:
        text += "; proved since its redaction only"
    if job.external:
        text += f"; external scores: {job.external:,} (in 0 to 1, not recomputed)"
    return text


def _all(here: Session, processes: int) -> Report:
    with output.console(stderr=True).status("checking") as status:
        return verify_all(
            database_url(here.settings),
            processes=processes,
            on_progress=lambda done, total: status.update(f"{done:,} of {total:,} jobs"),
        )


def _archives(here: Session, folders: Sequence[Path], found: list[Finding]) -> list[Report]:
    """Archived months; `found` gets those that the chain does not know."""
    from marco_search.export.archive import check_archive, read_manifest

    for folder in folders:
        if here.database.call(archives.chained_root, read_manifest(folder)) is None:
            what = "the chain knows no archive with this list"
            found.append(Finding("manifest.json", str(folder), what, "a link", "none"))
    return [check_archive(folder) for folder in folders]


def _finding_lines(found: Sequence[Finding]) -> list[str]:
    wrong = [finding for finding in found if not finding.unknown]
    unknown = [finding for finding in found if finding.unknown]
    lines = [] if found else ["Everything matches."]
    if wrong:
        lines += [f"Does not match, first: {wrong[0]}", *(f"  then {f}" for f in wrong[1:_SHOWN])]
    if len(wrong) > _SHOWN:
        lines.append(f"  and {len(wrong) - _SHOWN:,} more")
    if unknown:
        lines.append(f"This version can't check {len(unknown):,} links, first: {unknown[0]}")
    return lines


@command()
@click.option("--key", type=FILE, metavar="FILE", help="Ed25519 key (PEM) to sign it with.")
@click.option(
    "--new-key", type=FILE, metavar="FILE", help="Only create a key, and print its public part."
)
def anchor(key: Path | None, new_key: Path | None) -> None:
    """Print an anchor: the head of the chain, how many links and jobs it covers, and when.

    Keep it where the database's owners can't change it: `marco verify --anchor FILE` then detects a
    truncated or rewritten chain.

    \b
    marco anchor > anchor-2026-11-22.json
    """
    if new_key is not None:
        public = anchor_files.new_key(new_key)
        output.report(
            {"key": str(new_key), "public_key": public},
            f"Private key: {new_key}. Give others the public key:\n{public}",
        )
        return
    with session(needs_redis=False) as here, here.database.transaction() as conn:
        require_tables(conn, "`marco anchor`")
        taken = seals.anchor(conn, key=key)
    output.print_json(taken.model_dump())


@command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--before", required=True, type=Moment(["%Y-%m", "%Y-%m-%d"]), metavar="DATE",
    help="Months that ended by then, UTC: 2026-11 or 2026-11-01.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only report what would be archived.")
def archive(folder: Path, before: datetime, dry_run: bool) -> None:
    """Write whole months of jobs to FOLDER/YYYY-MM, check what was written, then drop their trees.

    Nodes, rollouts and answers leave the database; jobs, attempts, the log and the chain stay,
    and `marco verify` still passes. `marco verify --archive FOLDER/YYYY-MM` checks the files.
    A month with unfinished jobs, or with a row that does not verify, is refused.

    \b
    marco archive /srv/archive --before 2026-11 --dry-run
    """
    done: list[dict[str, Any]] = []
    with session(needs_redis=False) as here:
        with here.database.transaction() as conn:
            found = archives.months(conn, before)
            for month in found:
                archives.require_ended(conn, month)
            counts = {month.name: archives.counts(conn, month) for month in found}
        for month in found:
            path = folder / month.name
            link = None if dry_run else _archive_month(here, month, path)
            about = {"month": month.name, "folder": str(path), "link": link}
            done.append(about | counts[month.name])
    lines = [
        f"{month['month']}: jobs: {month['jobs']:,}, nodes: {month['nodes']:,}: "
        + ("would be archived" if dry_run else f"archived, link {month['link']} of the chain")
        + f": {month['folder']}"
        for month in done
    ]
    none = f"No month before {before:%Y-%m-%d} has anything to archive."
    output.report({"months": done, "dry_run": dry_run}, *(lines or [none]))


def _archive_month(here: Session, month: Month, path: Path) -> int:
    """Write, check and drop one month; the seq of its link. Raises ArchiveRefused."""
    from marco_search.export import archive as files

    failed = f"{month.name} is not archived"
    with files.alone(path.parent):
        with here.database.snapshot() as conn:
            archives.require_there(conn, month)
            files.refuse(failed, list(check_month(conn, month)))
            manifest = files.write(conn, month, path)
        files.refuse(failed, files.check_archive(path).findings)
        with here.database.transaction() as conn:
            allow(conn, None)
            return archives.drop(conn, month, manifest)


@command()
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option(
    "--metadata", "entries", type=options.PAIR, multiple=True, metavar="KEY=VALUE",
    help="All jobs with this entry in their metadata; repeatable: all must match.",
)  # fmt: skip
@click.option("--custom-id", metavar="ID", help="All jobs of lines with this custom_id.")
@click.option(
    "--batch", type=click.UUID, metavar="ID",
    help="All jobs of this batch, including restarted ones, and its refused lines.",
)  # fmt: skip
@options.tenants
@click.option("--reason", metavar="TEXT", help="Stored in the audit log, such as a ticket number.")
@click.option(
    "--archive", "months", type=FOLDER, metavar="FOLDER",
    help="Where the archived months are: jobs that were archived are redacted there, too.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask for confirmation. It can't be undone.")
def redact(
    jobs: tuple[str, ...], entries: options.Pairs, custom_id: str | None, batch: UUID | None,
    reason: str | None, months: Path | None, yes: bool,
) -> None:  # fmt: skip
    """Permanently replace every text of JOBs that have ended with salted hashes.

    Question, system prompt, metadata, answers, thoughts, tokens and error messages go; numbers,
    times and the shape of the tree stay and still verify. It needs a login of the role
    ..._redactor. docs/audit.md says what remains, and what is not reached: backups, exports.

    \b
    marco redact 4c5b12e0 --reason "request 17 of 2026-11-28"
    marco redact --metadata customer=4711
    marco redact --custom-id case-17 --all-tenants
    """
    if bool(jobs) == bool(entries or custom_id or batch):
        raise click.UsageError("Give jobs, or --metadata, --custom-id or --batch.")
    done: dict[UUID, int | None] = {}
    with session(needs_redis=False) as here:
        wanted = redactions.Choice(
            tenant=here.tenant, batch_id=batch, custom_id=custom_id,
            metadata=dict(entries),
        )  # fmt: skip
        if jobs:
            ids = list(dict.fromkeys(here.find(jobs)))
        else:
            ids = here.database.call(redactions.chosen, wanted)
        if ids and not yes:
            options.confirm(f"Replace all texts of {counted(len(ids), 'job')}, for good?")
        archived = _by_folder(here, ids, months) if months else {}
        for folder, those in archived.items():
            done |= _redact_month(here, folder, those, reason)
        for job_id in ids:
            if job_id not in done:
                try:
                    link = here.database.call(redactions.redact, job_id, reason=reason)
                except RedactionRefused as error:
                    so_far = f"{len(done):,} of {counted(len(ids), 'job')}"
                    raise RedactionRefused(f"{error}; {so_far} are redacted") from None
                done[job_id] = None if link is None else link.seq
        erased = 0 if jobs else here.database.call(redactions.erase_lines, wanted)
    lines = [
        f"{job_id}  "
        + (f"redacted, link {done[job_id]}" if done[job_id] else "was redacted before")
        for job_id in ids
    ]
    found = [{"job_id": str(job_id), "link": done[job_id]} for job_id in ids]
    lines += [f"{counted(erased, 'line')} without a job: erased"] if erased else []
    output.report({"jobs": found, "lines": erased}, *(lines or ["No jobs match."]))


def _by_folder(here: Session, ids: Sequence[UUID], months: Path) -> dict[Path, list[UUID]]:
    """Those of the jobs that were archived, by the folder of their month."""
    listed = here.database.call(archives.listed)
    found: dict[Path, list[UUID]] = {}
    for job_id in ids:
        month = next((one.month for one in listed if one.first <= job_id < one.before), None)
        if month is not None:
            found.setdefault(months / month, []).append(job_id)
    return found


def _redact_month(
    here: Session, folder: Path, ids: Sequence[UUID], reason: str | None
) -> dict[UUID, int | None]:
    from marco_search.export import archive as files

    with files.alone(folder.parent):
        here.database.call(files.put_in_place, folder)  # if an earlier run was killed before it did
        done = here.database.call(files.redact, folder, ids, reason=reason)
        here.database.call(files.put_in_place, folder)
        return done


FORMATS = ("jsonl", "parquet", "otlp-json")


@command()
@click.argument("folder", required=False, type=FOLDER)
@click.option(
    "--format", "file_format", type=click.Choice(FORMATS), default="jsonl",
    help="otlp-json: OpenTelemetry traces, one job a line.",
)  # fmt: skip
@click.option("--otlp", metavar="URL", help="Send traces to this collector instead (OTLP, HTTP).")
@click.option(
    "--table", "tables", multiple=True, type=click.Choice(list(TABLES)),
    help="Table to write; repeatable (default: all but tokens).",
)  # fmt: skip
@which_jobs
@click.option("--no-text", is_flag=True, help="Omit all texts of people and the model.")
def export(
    folder: Path | None, file_format: str, otlp: str | None, tables: tuple[str, ...],
    no_text: bool, **values: Any,
) -> None:  # fmt: skip
    """Write jobs with their trees to files in FOLDER, one for each table.

    Files are written atomically, with constant memory. All tables are of one snapshot. With --otlp,
    or as otlp-json, each job is a trace: job, attempts, rounds, branches, with tokens, texts and
    confidences, as Phoenix shows them.

    \b
    marco export out --format parquet --since 2026-11-01
    marco export --otlp http://localhost:6006 --batch 0199...
    """
    if (folder is None) is (otlp is None):
        raise click.UsageError("give a FOLDER to write to, or --otlp URL to send to")
    if no_text and "vocabulary" in tables:
        raise click.UsageError("--table vocabulary is nothing but text: not with --no-text")
    if (folder is None and file_format == "parquet") or (
        tables and (folder is None or file_format == "otlp-json")
    ):
        raise click.UsageError("--table and --format parquet are for files of rows, not traces")
    with session(needs_redis=False) as here, here.database.snapshot() as conn:
        chosen = here.chosen(**values)
        written: dict[str, int] = {}
        if folder is None or file_format == "otlp-json":
            exporter = _tracing()
            traces = exporter.traces(conn, chosen, text=not no_text)
            if folder is None:
                written["sent"] = exporter.send(otlp, traces)
            else:
                path = folder / "traces.jsonl"
                written[str(path)] = exporter.write(path, traces)
        else:
            left_out = {"tokens"} | ({"vocabulary"} if no_text else set())
            for name in tables or [name for name in TABLES if name not in left_out]:
                path = folder / f"{name}.{file_format}"
                rows = write(conn, path, name, chosen, file_format=file_format, text=not no_text)
                written[str(path)] = rows
    output.report(written, *(f"{what}: {count:,}" for what, count in written.items()))


def _tracing() -> ModuleType:
    try:
        from marco_search.export import otlp as exporter
    except ValueError as error:  # the SDK reads the OTEL_..._LIMIT variables when it is imported
        raise InvalidSettings(str(error)) from None
    return exporter
