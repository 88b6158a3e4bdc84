"""`marco export`: jobs, trees and tokens as files, searches as traces."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from marco_search.cli import output
from marco_search.cli.options import command, which_jobs
from marco_search.cli.session import session
from marco_search.errors import InvalidSettings
from marco_search.export.tables import TABLES, Filter, write

FORMATS = ("jsonl", "parquet", "otlp-json")


@command()
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--format", "file_format", type=click.Choice(FORMATS), default="jsonl", show_default=True,
    help="otlp-json: OpenTelemetry traces, one job a line.",
)  # fmt: skip
@click.option("--otlp", metavar="URL", help="Send traces to this collector instead (OTLP, HTTP).")
@click.option(
    "--table", "tables", multiple=True, type=click.Choice(list(TABLES)),
    help="Table to write; may be given again. All but tokens by default.",
)  # fmt: skip
@which_jobs
@click.option("--no-text", is_flag=True, help="Leave out what people and the model wrote.")
def export(
    folder: Path | None, file_format: str, otlp: str | None, tables: tuple[str, ...],
    jobs: tuple[str, ...], batch: Any,
    since: datetime | None, until: datetime | None, no_text: bool,
) -> None:  # fmt: skip
    """Write jobs with their trees to files in FOLDER, one for each table.

    Files appear whole or not at all, and memory does not grow with their size. All tables are
    of one moment. With --otlp, or as otlp-json, each job is a trace: job, attempts, rounds,
    branches, with tokens, texts and confidences, as Phoenix and Langfuse show them.

    \b
    marco export out --format parquet --since 2026-11-01
    marco export --otlp http://localhost:6006 --batch 0199...
    """
    if (folder is None) is (otlp is None):
        raise click.UsageError("give a FOLDER to write to, or --otlp URL to send to")
    if no_text and "vocabulary" in tables:
        raise click.UsageError("--table vocabulary is nothing but text: not with --no-text")
    with session(needs_redis=False) as here, here.database.snapshot() as conn:
        chosen = Filter(
            jobs=here.find(jobs),
            batch=batch,
            tenant=here.tenant,
            since=since,
            until=until,
        )
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
