"""`marco replay --reward`: stored trees under another reward or vote, no token generated."""

from __future__ import annotations

from pathlib import Path

from marco_search.cli.output import echo, print_json


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
    from marco_search.evaluation.traces import read

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
    echo(f"{len(known)} problems\n\n{table(head, lines)}")


def rescore_job(
    word: str,
    *,
    rewards: tuple[str, ...],
    votes: tuple[str, ...],
    sharpness: tuple[float, ...],
    as_json: bool,
) -> None:
    """What the tree of the job that `word` names answers under each reward, vote and power."""
    from marco_search.cli.replayed import stored_tree
    from marco_search.cli.session import session
    from marco_search.evaluation.report import percent, table
    from marco_search.evaluation.rescoring import answer_under
    from marco_search.evaluation.rewards import REWARDS
    from marco_search.evaluation.traces import traced
    from marco_search.kinds import parse_job
    from marco_search.search.tree import Tree

    with session(needs_redis=False) as here:
        job, plan, nodes, rollouts = stored_tree(here, word)
    tree = Tree.restore(nodes, rollouts)
    trace = traced(
        str(job.id),
        parse_job(job.payload),
        tree,
        run="",
        config=plan.config,
        stop_reason=str(job.stop_reason),
        seconds=0.0,
        keep_tokens=True,
    )
    found = []
    for reward in rewards or tuple(REWARDS):
        for vote in votes or (plan.config.choice.value,):
            for power in sharpness or (plan.config.sharpness,):
                key, share = answer_under(trace, reward=reward, vote=vote, sharpness=power)
                answer = None if key is None else trace.answers[key]
                found.append((reward, vote, power, answer, share))
    if as_json:
        names = ("reward", "vote", "sharpness", "answer", "share")
        print_json([dict(zip(names, row, strict=True)) for row in found])
        return
    head = ("reward", "vote", "sharpness", "answer", "share %")
    lines = [(r, v, f"{p:g}", " ".join((a or "").split()), percent(s)) for r, v, p, a, s in found]
    echo(f"job {job.id}: {len(rollouts)} rollouts\n\n{table(head, lines)}")
