"""`marco replay`: stored trees under another reward or vote, without generating a token."""

from __future__ import annotations

from pathlib import Path

import click

from ops.cli.output import json_option, print_json


@click.command(short_help="Score stored trees under another reward or vote.")
@click.argument("traces", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--set", "data_set", required=True, metavar="SET", help="Where the labels are.")
@click.option("--language", metavar="LANG", help="Which file of a folder, or of MGSM.")
@click.option(
    "--reward",
    "rewards",
    multiple=True,
    metavar="NAME",
    help="Reward to score by; several may be given, all by default.",
)
@click.option(
    "--vote",
    "votes",
    multiple=True,
    metavar="NAME",
    help="vote, weighted, best, borda or tree; weighted by default.",
)
@click.option(
    "--sharpness",
    type=float,
    multiple=True,
    metavar="P",
    help="Power of a weighted vote's weights (default 1).",
)
@json_option
def replay(
    traces: Path, data_set: str, language: str | None, rewards: tuple[str, ...],
    votes: tuple[str, ...], sharpness: tuple[float, ...], as_json: bool,
) -> None:  # fmt: skip
    """Score the searches in TRACES, a file of `marco eval --trees`, under other rewards.

    Nothing is generated: the rollouts stay what they were, their rewards and the vote change.
    """
    from marco_search.evaluation.data_sets import load
    from marco_search.evaluation.grading import Grader
    from marco_search.evaluation.report import percent, table
    from marco_search.evaluation.rescoring import rescore
    from marco_search.evaluation.rewards import REWARDS
    from marco_search.evaluation.run import read

    grader = Grader(load(data_set, language=language))
    known = [t for t in read(traces) if t.key in grader]
    found = [
        rescore(known, grader, reward=reward, vote=vote, sharpness=power)
        for reward in rewards or tuple(REWARDS)
        for vote in votes or ("weighted",)
        for power in sharpness or (1.0,)
    ]
    if as_json:
        print_json([r.to_json() for r in found])
        return
    head = ("reward", "vote", "sharpness", "accuracy %", "95 %", "AUROC", "within a problem")
    lines = [
        (
            r.reward,
            r.vote,
            f"{r.sharpness:g}",
            percent(r.accuracy),
            f"{percent(r.interval[0])} to {percent(r.interval[1])}",
            "" if r.auroc is None else f"{r.auroc:.3f}",
            "" if r.auroc_within is None else f"{r.auroc_within:.3f}",
        )
        for r in found
    ]
    click.echo(f"{len(known)} problems\n\n{table(head, lines)}")
