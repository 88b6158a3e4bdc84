"""`marco dataset`: data sets for training."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from marco_search.cli import options, output
from marco_search.cli.export_command import moment, utc
from marco_search.cli.session import session
from marco_search.export.tables import Filter
from marco_search.store.db import require_tables

_share = click.FloatRange(0, 1)


@click.group()
def dataset() -> None:
    """Data sets for training: made from stored trees and files, filtered, mixed, traced back."""


@dataset.command("from-traces", cls=options.JsonCommand)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
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
    "--path", type=click.Choice(["best", "any"]), default="best", show_default=True,
    help="Which path to the answer: the best, or one at random.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of --path any.")
def from_traces(
    folder: Path, name: str | None, pairs: bool, jobs: tuple[str, ...], batch: Any,
    since: datetime | None, until: datetime | None, strategy: str | None, model: str | None,
    revision: str | None, min_share: float, min_confidence: float, verified: bool, reflection: Any,
    path: Any, seed: int,
) -> None:  # fmt: skip
    """Make a data set of jobs that succeeded: of each the best path to its answer.

    FOLDER appears whole or not at all, with a manifest of the rules, counts and hashes, and
    dropped.json: what was left out by which rule. Every job is verified first. Jobs of other
    tenants are not read without --all-tenants.

    \b
    marco dataset from-traces traces --batch 0199... --verified
    marco dataset from-traces pairs --pairs --since 2026-11-01
    """
    from marco_search.learning import build, traces

    rules = traces.Rules(
        least_share=min_share, least_confidence=min_confidence, verified=verified,
        reflection=reflection, path=path, seed=seed,
    )  # fmt: skip
    with session(needs_redis=False) as here:
        with here.database.transaction() as conn:
            require_tables(conn, "`marco dataset from-traces`")
        chosen = Filter(
            jobs=here.find(jobs), batch=batch, tenant=here.tenant, since=utc(since),
            until=utc(until), strategy=strategy, model=model, revision=revision,
        )  # fmt: skip
        manifest = build.from_traces(
            here.database, folder, chosen, rules, kind="preference" if pairs else "sft", name=name
        )
    _report(folder, manifest)


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
