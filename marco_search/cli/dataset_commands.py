"""`marco dataset`: data sets for training."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from marco_search.cli import options, output
from marco_search.cli.error_reports import DOES_NOT_FIT
from marco_search.cli.export_command import moment, utc
from marco_search.cli.session import session
from marco_search.cli.tables import Column, number, text_table
from marco_search.export.tables import Filter
from marco_search.learning.duplicates import THRESHOLD

_share = click.FloatRange(0, 1)


_folder = click.Path(file_okay=False, path_type=Path)
_COLUMNS = (
    Column("id", lambda d: str(d.dataset_id), drop=1),
    Column("name", lambda d: d.name, flexible=True),
    Column("kind", lambda d: d.kind),
    number("lines", lambda d: f"{d.samples:,}"),
    Column("tenant", lambda d: d.tenant or "(all)"),
    Column("made", lambda d: f"{d.created_at:%Y-%m-%d %H:%M}"),
    Column("manifest", lambda d: d.manifest_sha256[:16], drop=2),
)


@click.group()
def dataset() -> None:
    """Data sets for training: made from stored trees and files, filtered, mixed, traced back."""


@dataset.command("from-traces", cls=options.JsonCommand)
@click.argument("folder", type=_folder)
@click.option("--name", metavar="TEXT", help="What it is called (default: the folder's name).")
@click.option("--pairs", is_flag=True, help="Preference pairs instead: won and lost in one tree.")
@click.option("--job", "jobs", multiple=True, metavar="JOB", help="Only this job; again for more.")
@click.option("--batch", type=click.UUID, metavar="ID", help="Only jobs of this batch.")
@options.tenants
@click.option("--since", type=moment, metavar="TIME", help="Submitted at or after, UTC.")
@click.option("--until", type=moment, metavar="TIME", help="Submitted before, UTC.")
@click.option("--strategy", metavar="NAME", help="Only jobs that were searched so.")
@click.option("--model", metavar="NAME", help="Only jobs that were searched with this model.")
@click.option("--revision", metavar="HEX", help="Only with this revision, or one that begins so.")
@click.option(
    "--min-share", type=_share, default=0.5, show_default=True, metavar="X",
    help="Least part of the vote that the answer has.",
)  # fmt: skip
@click.option(
    "--min-confidence", type=_share, default=0.0, show_default=True, metavar="X",
    help="Least confidence of the answer.",
)  # fmt: skip
@click.option(
    "--verified", is_flag=True,
    help="Only answers that a label or a verifier says are right. Wrong ones never count.",
)  # fmt: skip
@click.option(
    "--reflection", type=click.Choice(["mended", "kept", "redo"]), default="mended",
    show_default=True,
    help="Paths with a reflection: only if it mended the answer; all; all, without what was "
    "before it.",
)  # fmt: skip
@click.option(
    "--answer", type=click.Choice(["voted", "expected"]), default="voted", show_default=True,
    help="Paths to which answer: the job's, or where there is a label the right one, even if it "
    "lost the vote.",
)  # fmt: skip
@click.option(
    "--path", type=click.Choice(["best", "any"]), default="best", show_default=True,
    help="Which path to the answer: the best, or one at random.",
)  # fmt: skip
@click.option(
    "--near-duplicate", type=_share, default=THRESHOLD, show_default=True, metavar="X",
    help="Leave out what has this part of its runs of words from another; 1: equal texts only.",
)  # fmt: skip
@click.option(
    "--held-out", "held_out", multiple=True, metavar="SET",
    help="Leave out what holds problems of this set, as `marco eval` names it; again for more.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of --path any.")
def from_traces(
    folder: Path, name: str | None, pairs: bool, jobs: tuple[str, ...], batch: Any,
    since: datetime | None, until: datetime | None, strategy: str | None, model: str | None,
    revision: str | None, min_share: float, min_confidence: float, verified: bool, reflection: Any,
    answer: Any, path: Any, near_duplicate: float, held_out: tuple[str, ...], seed: int,
) -> None:  # fmt: skip
    """Make a data set of jobs that succeeded: of each the best path to its answer.

    FOLDER appears whole or not at all, with a manifest of the rules, counts and hashes, and
    dropped.json: what was left out by which rule. Every job is verified first. Jobs of other
    tenants are not read without --all-tenants.

    \b
    marco dataset from-traces traces --batch 0199... --verified
    marco dataset from-traces pairs --pairs --since 2026-11-01
    """
    from marco_search.learning import build, contamination, duplicates, traces

    wanted = traces.Rules(
        least_share=min_share, least_confidence=min_confidence, verified=verified,
        reflection=reflection, answer=answer, path=path, seed=seed,
    )  # fmt: skip
    with session(needs_redis=False) as here:
        chosen = Filter(
            jobs=here.find(jobs), batch=batch, tenant=here.tenant, since=utc(since),
            until=utc(until), strategy=strategy, model=model, revision=revision,
        )  # fmt: skip
        threshold = near_duplicate if near_duplicate < 1 else None
        with duplicates.rules(threshold) as found:
            manifest = build.from_traces(
                here.database, folder, chosen, wanted,
                rules=contamination.rules(held_out) | found,
                kind="preference" if pairs else "sft", name=name,
            )  # fmt: skip
    _report(folder, manifest)


@dataset.command("list", cls=options.JsonCommand)
@options.tenants
def list_data_sets() -> None:
    """List the data sets that were made from stored trees, newest first."""
    from marco_search.learning import origins

    with session(needs_redis=False) as here, here.database.transaction() as conn:
        found = origins.data_sets(conn, here.tenant)
    table = text_table(_COLUMNS, found, width=output.terminal_width())
    none = "No data sets: `marco dataset from-traces` makes one."
    output.report({"datasets": found}, table if found else none)


@dataset.command("trace", cls=options.JsonCommand)
@click.argument("sample", metavar="SAMPLE")
@click.option(
    "--folder", type=_folder, help="Check the files of the data set in this folder as well."
)
@options.tenants
def trace_sample(sample: str, folder: Path | None) -> None:
    """Show the job, rollout and nodes that a line of a data set came from.

    SAMPLE is the line's id, or its beginning. The job is verified, the line made again from its
    tree, and hashes compared: exits with 9 if something does not hold any more.
    """
    from marco_search.learning import manifest, origins

    with session(needs_redis=False) as here, here.database.snapshot() as conn:
        found = origins.trace(conn, sample, here.tenant)
    broken = manifest.broken(folder, manifest.read(folder)) if folder else []
    holds = not broken and all(origin.holds for origin in found)
    lines = [line for origin in found for line in origins.lines(origin)]
    lines += [f"{folder}: {name} is not as the manifest says" for name in broken]
    output.report({"origins": found, "changed_files": broken, "holds": holds}, *map(Text, lines))
    if not holds:
        click.get_current_context().exit(DOES_NOT_FIT)


def _report(folder: Path, manifest: dict[str, Any]) -> None:
    """What was made, and how many each rule left out."""
    counts = manifest["counts"]
    what = "pairs" if manifest["kind"] == "preference" else "samples"
    read = ", ".join(
        f"{n:,} {name}" for name, n in counts.items() if name not in ("out", "dropped")
    )
    lines = [f"{folder}: {counts['out']:,} {what}; read: {read}"]
    lines += [f"  left out, {rule}: {n:,}" for rule, n in counts["dropped"].items()]
    lines.append(f"manifest {manifest['manifest_sha256']}")
    output.report({"folder": str(folder), **manifest}, *lines)
