"""`marco solve`: one question, answered in this process."""

from __future__ import annotations

import sys
from typing import Any

import click

from marco_search.cli import output
from marco_search.cli.job_input import job_from_options, kind_options, search_options
from marco_search.cli.job_text import result_json, result_report
from marco_search.cli.options import command
from marco_search.cli.tree_text import draw_tree, tree_json
from marco_search.engine import job_result, search_job
from marco_search.search.branches import Finish
from marco_search.search.mcts import Search
from marco_search.search.rewards import mean
from marco_search.search.tree import Tree
from marco_search.store.reads.job_record import Fork, TreeRow


@command()
@click.argument("question")
@kind_options
@search_options
@click.option("--tree", is_flag=True, help="Draw the search tree.")
@click.option("--thought", is_flag=True, help="Print the best answer's Thought as well.")
def solve(question: str, tree: bool, thought: bool, **values: Any) -> None:
    """Answer QUESTION in this process, without any service. "-" reads it from standard input.

    The model is the one that MARCO_RUNTIME and MARCO_MODEL name: the pocket model by default.
    Nothing is kept.
    """
    text = sys.stdin.read() if question == "-" else question
    job = job_from_options(text, values)
    with output.console(stderr=True).status("searching") as status:
        finished = search_job(
            job,
            on_round=lambda so_far: status.update(
                f"{len(so_far.tree.rollouts)} of {so_far.config.rollouts} rollouts"
            ),
        )
    result = job_result(job, finished)
    ranked = finished.search.ranked()
    rollouts = finished.search.tree.rollouts
    path = rollouts[ranked[0].best_rollout_id].path if ranked else ()
    nodes = drawn_nodes(finished.search)
    if output.as_json():
        data = result_json(result, thought=thought)
        del data["job_id"]
        output.print_json(data | ({"tree": tree_json(nodes, path)} if tree else {}))
        return
    output.show(result_report(result, thought=thought))
    if tree:
        output.show("", draw_tree(nodes, path))


def drawn_nodes(search: Search) -> list[TreeRow]:
    """The search's nodes, parents before children."""
    tree, forks = search.tree, _forks(search.tree)
    return [
        TreeRow(
            node_id=node.node_id,
            parent_id=node.parent_id,
            depth=node.depth,
            round=node.round,
            action=node.action,
            text=node.text,
            tokens=len(node.tokens),
            confidence=mean(node.confidences) if node.confidences else None,
            terminal=node.terminal,
            visits=tree.visits[node.node_id],
            value=tree.mean_value(node.node_id) if tree.visits[node.node_id] else None,
            fork=forks.get(node.node_id),
        )
        for node in tree.nodes
    ]


def _forks(tree: Tree) -> dict[int, Fork]:
    """What was passed over where a node begins, by its id; as the view audit.forks has it."""
    found: dict[int, Fork] = {}
    for rollout in tree.rollouts:
        if rollout.forced is None or rollout.finish is Finish.FAILED:
            continue
        fork = tree.nodes[rollout.path[rollout.path.index(rollout.start_id) + 1]]
        siblings = (tree.nodes[i] for i in tree.children[rollout.start_id])
        before = next(node for node in siblings if node.tokens)
        taken, forced = before.tokens[0], fork.tokens[0]
        found[fork.node_id] = Fork(
            taken=tree.texts.get(taken.id, taken.text),
            taken_share=before.confidences[0],
            passed_over=tree.texts.get(forced.id, forced.text),
            passed_over_share=fork.confidences[0],
        )
    return found
