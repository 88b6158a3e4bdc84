"""`marco show`: one job with its answers and its tree."""

from __future__ import annotations

import click

from ops.cli.output import ascii_only, json_option, print_json, terminal_width
from ops.cli.output import show as print_parts


@click.command(short_help="Show a job's answers, totals and search tree.")
@click.argument("job")
@click.option("--thought", is_flag=True, help="Print the best answer's Thought as well.")
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="Edges below the root.")
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    metavar="N",
    help="Nodes drawn at most: the winning path, then those visited most.",
)
@click.option("--full", is_flag=True, help="Draw all nodes with their whole text.")
@json_option
def show(job: str, thought: bool, depth: int | None, nodes: int, full: bool, as_json: bool) -> None:
    """Show JOB: its ranked answers, what the search took, and the tree it grew.

    In the tree each node has its visit count and its value, the mean confidence of the
    rollouts through it; * marks the path to the best answer.
    """
    from marco_search.store import queries
    from ops.cli import reading
    from ops.cli.render.jobs import heading
    from ops.cli.render.result import drop_thoughts, report
    from ops.cli.render.tree import draw_tree, tree_json
    from ops.cli.session import session

    with session() as here, here.database.transaction() as conn:
        (job_id,) = reading.find_jobs(conn, [job], here.tenant)
        (line,) = queries.statuses(conn, [job_id])
        results = queries.results(conn, [job_id])
        tree = reading.drawn_tree(conn, job_id)
        path = reading.winning_path(conn, job_id)
    if as_json:
        result = results[0].model_dump(mode="json") if results else None
        if result and not thought:
            drop_thoughts(result)
        job_json = line.model_dump(mode="json")
        print_json({"job": job_json, "result": result, "tree": tree_json(tree, path)})
        return
    print_parts(*heading(line), "")
    if results:
        print_parts(report(results[0], thought=thought))
    if tree:
        drawn = draw_tree(
            tree,
            path,
            width=terminal_width(),
            limit=nodes,
            depth=depth,
            full=full,
            ascii_only=ascii_only(),
        )
        print_parts("", drawn)
