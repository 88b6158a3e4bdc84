"""`marco solve`: one question, answered in this process."""

from __future__ import annotations

import sys
from typing import Any

import click

from marco_search.cli.output import (
    ascii_only,
    console,
    json_option,
    print_json,
    show,
    terminal_width,
)
from marco_search.cli.search_options import job_from_options, kind_options, search_options


@click.command(short_help="Answer one question here and now.")
@click.argument("question")
@kind_options
@search_options
@click.option("--tree", is_flag=True, help="Draw the search tree.")
@click.option("--thought", is_flag=True, help="Print the best answer's Thought as well.")
@json_option
def solve(question: str, tree: bool, thought: bool, as_json: bool, **values: Any) -> None:
    """Answer QUESTION here and now, without any service. "-" reads it from standard input.

    The model is the one that MARCO_RUNTIME and MARCO_MODEL name: the pocket model by default.
    Nothing is kept.
    """
    from marco_search.cli.render import result as render
    from marco_search.cli.render.tree import draw_tree, tree_json
    from marco_search.cli.searched import drawn_nodes, winning_path
    from marco_search.engine import job_result, search_job

    text = sys.stdin.read() if question == "-" else question
    job = job_from_options(text, values)
    with console(stderr=True).status("searching") as status:
        finished = search_job(
            job,
            on_round=lambda so_far: status.update(
                f"{len(so_far.tree.rollouts)} of {so_far.config.rollouts} rollouts"
            ),
        )
    result = job_result(job, finished)
    nodes, path = drawn_nodes(finished.search), winning_path(job, finished.search)
    if as_json:
        data = result.model_dump(mode="json", exclude={"job_id"})
        if not thought:
            render.drop_thoughts(data)
        if tree:
            data["tree"] = tree_json(nodes, path)
        print_json(data)
        return
    show(render.report(result, thought=thought))
    if tree:
        show("", draw_tree(nodes, path, width=terminal_width(), ascii_only=ascii_only()))
