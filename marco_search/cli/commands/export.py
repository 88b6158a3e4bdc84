"""`marco export`: jobs, trees and tokens as files, searches as traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from marco_search.cli.output import echo, json_option, print_json

if TYPE_CHECKING:
    from marco_search.export.tables import Filter
    from marco_search.store.db import Conn

FORMATS = ("jsonl", "parquet", "otlp-json")
TABLES = ("jobs", "attempts", "answers", "rollouts", "nodes", "vocabulary", "tokens")
_moment = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"])


@click.command(short_help="Write jobs, trees and tokens to files, or send traces.")
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--format", "file_format", type=click.Choice(FORMATS), default="jsonl", show_default=True,
    help="otlp-json: OpenTelemetry traces, one job a line.",
)  # fmt: skip
@click.option("--otlp", metavar="URL", help="Send traces to this collector instead (OTLP, HTTP).")
@click.option(
    "--table", "tables", multiple=True, type=click.Choice(TABLES),
    help="Table to write; may be given again. All but tokens by default.",
)  # fmt: skip
@click.option("--job", "jobs", multiple=True, metavar="JOB", help="Only this job; again for more.")
@click.option("--batch", type=click.UUID, metavar="ID", help="Only jobs of this batch.")
@click.option("--tenant", metavar="NAME", help="Whose jobs (default: MARCO_TENANT's).")
@click.option("--all-tenants", is_flag=True, help="The jobs of all tenants.")
@click.option("--since", type=_moment, metavar="TIME", help="Submitted at or after, UTC.")
@click.option("--until", type=_moment, metavar="TIME", help="Submitted before, UTC.")
@click.option("--no-text", is_flag=True, help="Leave out what people and the model wrote.")
@json_option
def export(
    folder: Path | None, file_format: str, otlp: str | None, tables: tuple[str, ...],
    jobs: tuple[str, ...], batch: Any, tenant: str | None, all_tenants: bool,
    since: datetime | None, until: datetime | None, no_text: bool, as_json: bool,
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
    if tenant and all_tenants:
        raise click.UsageError("--tenant and --all-tenants exclude each other")
    from marco_search.cli.session import session
    from marco_search.export.tables import Filter

    with session(needs_redis=False) as here, _one_moment(here.database.connect()) as conn:
        whose = None if all_tenants else tenant or here.tenant
        chosen = Filter(
            jobs=_found(conn, jobs, tenant or here.tenant),
            batch=batch,
            tenant=whose,
            since=_utc(since),
            until=_utc(until),
        )
        if otlp is not None:
            said = {"sent": _send(conn, otlp, chosen, text=not no_text)}
        else:
            assert folder is not None
            left_out = {"tokens"} | ({"vocabulary"} if no_text else set())
            names = tables or tuple(name for name in TABLES if name not in left_out)
            said = _write(conn, folder, file_format, names, chosen, text=not no_text)
    if as_json:
        print_json(said)
    else:
        for what, count in said.items():
            echo(f"{what}: {count:,}")


@contextmanager
def _one_moment(conn: Conn) -> Iterator[Conn]:
    """The connection in a read-only transaction that sees one moment and has time."""
    from psycopg import IsolationLevel

    from marco_search.store.db import allow

    conn.isolation_level = IsolationLevel.REPEATABLE_READ
    conn.read_only = True
    with conn, conn.transaction():
        allow(conn, None)
        conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield conn


def _found(conn: Conn, words: tuple[str, ...], tenant: str) -> list[Any]:
    from marco_search.cli import reading

    return reading.find_jobs(conn, words, tenant)


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def _write(
    conn: Conn,
    folder: Path,
    file_format: str,
    names: tuple[str, ...],
    chosen: Filter,
    *,
    text: bool,
) -> dict[str, int]:
    """Write the files; rows (or traces) by path."""
    from marco_search.export import tables

    if file_format == "otlp-json":
        otlp = _otlp()
        from marco_search.export.spans import traces

        path = folder / "traces.jsonl"
        return {str(path): otlp.write(path, traces(conn, chosen, text=text))}
    return {
        str(path): tables.write(conn, path, name, chosen, file_format=file_format, text=text)
        for name, path in ((name, folder / f"{name}.{file_format}") for name in names)
    }


def _send(conn: Conn, url: str, chosen: Filter, *, text: bool) -> int:
    otlp = _otlp()
    from marco_search.export.spans import traces

    sent: int = otlp.send(url, traces(conn, chosen, text=text))
    return sent


def _otlp() -> ModuleType:
    from marco_search.errors import InvalidSettings

    try:
        from marco_search.export import otlp
    except ValueError as error:  # the SDK reads the OTEL_..._LIMIT variables when it is imported
        raise InvalidSettings(str(error)) from None
    return otlp
