"""`marco show`: one job with its answers and its tree, in the terminal or as a file."""

from __future__ import annotations

from pathlib import Path

import click

from marco_search.cli.output import ascii_only, echo, json_option, print_json, terminal_width
from marco_search.cli.output import show as print_parts

FORMATS = ("html", "svg", "dot", "mermaid", "json")
DRAWN = 40  # nodes in the terminal


@click.command(short_help="Show a job's answers, totals and search tree.")
@click.argument("job")
@click.option("--thought", is_flag=True, help="Print the best answer's Thought as well.")
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="Edges below the root.")
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Nodes drawn at most: the winning path, then those visited most  "
    f"[default: {DRAWN}; in a file all, in Mermaid 400]",
)
@click.option("--full", is_flag=True, help="Draw all nodes with their whole text.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
    help="Write a document instead: html is one file that needs nothing else.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Where --format writes; standard output if not given.",
)
@json_option
def show(
    job: str,
    thought: bool,
    depth: int | None,
    nodes: int | None,
    full: bool,
    file_format: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Show JOB: its ranked answers, what the search took, and the tree it grew.

    In the tree each node has its visit count and its value, the mean confidence of the
    rollouts through it; * marks the path to the best answer.

    \b
    marco show 9cb008cd --format html -o job.html    a report to open in any browser
    marco show 9cb008cd --format dot | dot -Tpdf > job.pdf
    """
    from marco_search.cli import reading
    from marco_search.cli.render.jobs import archived, heading
    from marco_search.cli.render.result import drop_thoughts, report
    from marco_search.cli.render.tree import draw_tree, tree_json
    from marco_search.cli.session import session
    from marco_search.store.reads import job_record, queries

    if output is not None and file_format is None:
        raise click.UsageError("--output needs --format.")
    if file_format is not None and as_json:
        raise click.UsageError("--format and --json exclude each other.")
    with session(needs_redis=False) as here:
        with here.database.transaction() as conn:
            job_id = reading.find_job(conn, job, here.tenant)
        if file_format is not None:
            from marco_search.console.reader import Reader
            from marco_search.console.report import render

            reader = Reader(here.database)
            text = render(reader, job_id, file_format, limit=nodes, depth=depth)
            _write(text, output)
            return
        with here.database.transaction() as conn:
            (status,) = queries.statuses(conn, [job_id])
            record = job_record.read(conn, job_id)
            results = queries.results(conn, [job_id])
    tree, path = record.nodes, record.winning_path
    if as_json:
        result = results[0].model_dump(mode="json") if results else None
        if result and not thought:
            drop_thoughts(result)
        job_json = status.model_dump(mode="json")
        print_json({"job": job_json, "result": result, "tree": tree_json(tree, path)})
        return
    print_parts(*heading(status), "")
    if record.archived:
        print_parts(*archived(status, record.archived))
    elif results:
        print_parts(report(results[0], thought=thought))
    if tree:
        drawn = draw_tree(
            tree,
            path,
            width=terminal_width(),
            limit=nodes or DRAWN,
            depth=depth,
            full=full,
            ascii_only=ascii_only(),
        )
        print_parts("", drawn)


def _write(text: str, output: Path | None) -> None:
    text = text if text.endswith("\n") else f"{text}\n"
    if output is None:
        echo(text, end="")
        return
    try:
        output.write_bytes(text.encode("utf-8", "replace"))
    except OSError as error:
        raise click.FileError(str(output), error.strerror) from None
    click.echo(f"Written: {output}", err=True)
