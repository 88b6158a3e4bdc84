"""`marco replay FILE`: stored trees under another reward or vote, without generating a token."""

from __future__ import annotations

from pathlib import Path

import click

from ops.cli.output import print_json


def rescore_file(
    traces: Path,
    data_set: str,
    *,
    language: str | None,
    rewards: tuple[str, ...],
    votes: tuple[str, ...],
    sharpness: tuple[float, ...],
    as_json: bool,
) -> None:
    """Score the searches in `traces` under each reward, vote and sharpness, and print a table."""
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
