"""`marco replay`: generate a stored job again, or score stored trees under another reward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import product
from pathlib import Path

import click

from marco_search.cli import output
from marco_search.cli.error_reports import DOES_NOT_FIT, OTHER_ENGINE
from marco_search.cli.options import command, tenants
from marco_search.cli.session import session
from marco_search.evaluation.data_sets import load
from marco_search.evaluation.grading import Grader
from marco_search.evaluation.report import percent, table
from marco_search.evaluation.rescoring import answer_under, rescore
from marco_search.evaluation.traces import read, traced
from marco_search.replay import Replayed
from marco_search.replay import replay as generate_again
from marco_search.runtime import open_runtime
from marco_search.runtime.base import UNKNOWN, RuntimeInfo
from marco_search.search.rewards import EXTERNAL, REWARDS
from marco_search.search.tree import Tree
from marco_search.store.reads import job_record
from marco_search.store.reads.job_record import StoredSearch


@command()
@click.argument("target", metavar="JOB|TRACES")
@tenants
@click.option("--set", "data_set", metavar="SET", help="TRACES: where the labels are.")
@click.option("--language", metavar="LANG", help="TRACES: which file of a folder, or of MGSM.")
@click.option(
    "--reward", "rewards", multiple=True, metavar="NAME",
    help="Score by this reward instead of generating; several may be given.",
)  # fmt: skip
@click.option(
    "--vote", "votes", multiple=True, metavar="NAME",
    help="And by this vote: vote, weighted, best, borda or tree.",
)  # fmt: skip
@click.option(
    "--sharpness", "powers", type=float, multiple=True, metavar="P",
    help="And by weights to this power.",
)  # fmt: skip
def replay(
    target: str, data_set: str | None, language: str | None, rewards: tuple[str, ...],
    votes: tuple[str, ...], powers: tuple[float, ...],
) -> None:  # fmt: skip
    """Generate JOB again from its stored seed, prompt, configuration and model, and compare.

    Says whether the tree is the same, node by node; with the embedded engine it is, bit for
    bit. Other engines may round otherwise: then it says how much agrees and where the first
    difference is. Another model or revision is refused. Nothing is stored. Exits with 9 if the
    text is another; with the embedded engine, if a single bit is. If the job was searched on
    another engine or kind of processor, which may round otherwise, it exits with 10 instead.

    With --reward, --vote or --sharpness nothing is generated: says what the job's stored tree
    answers under them (by default with the job's own vote). With a file, TRACES of
    `marco eval --trees`, the same for all its trees: how many are right.
    """
    path = Path(target)
    if path.is_file():
        if data_set is None:
            raise click.UsageError("a file of traces needs --set SET, which has the labels")
        known = [name for name in REWARDS if name not in EXTERNAL]
        ways = product(rewards or known, votes or ("weighted",), powers or (1.0,))
        _rescore_file(path, Grader(load(data_set, language=language)), ways)
        return
    if data_set is not None or language or path.name != target or path.suffix:
        raise click.UsageError(f"{target}: no such file")
    with session(needs_redis=False) as here:
        (job_id,) = here.find([target])
        with here.database.transaction() as conn:
            stored = job_record.stored_search(conn, job_id)
        if rewards or votes or powers:
            usual = stored.plan.config
            known = [n for n in REWARDS if n not in EXTERNAL or n == usual.reward]
            ways = product(
                rewards or known, votes or (usual.choice.value,), powers or (usual.sharpness,)
            )
            _rescore_job(stored, ways)
            return
        with (
            closing(open_runtime(here.settings)) as runtime,
            output.console(stderr=True).status("generating", spinner="line") as status,
        ):
            info = runtime.info
            done = generate_again(
                stored.job,
                stored.plan,
                stored.nodes,
                stored.rollouts,
                runtime,
                texts=stored.texts,
                stop_reason=stored.stop_reason if stored.state == "succeeded" else None,
                on_round=lambda number, of: status.update(f"round {number} of {of}"),
            )
    engine = f"{info.name} {info.version}"
    same_engine = set(stored.engines) == {engine}
    same_text = done.same_text and done.same_answers + done.read_otherwise == done.rollouts
    fits = done.same_bits if info.exact else same_text
    data = asdict(done)
    data |= {
        "job_id": stored.job_id,
        "state": stored.state,
        "fits": fits,
        "same_bits": done.same_bits,
        "same_text": done.same_text,
        "engine": engine,
        "engine_then": stored.engines[0],
        "lacks": list(info.lacks),
        "same_engine": same_engine,
        "attempts": stored.attempts,
        "failed_rollouts": data.pop("failed"),
        "first_difference": data.pop("first") and str(done.first),
    }
    lines = list(_lines(stored, done, info))
    if not fits and not same_engine:
        lines.append(
            "This is no proof of a change: another engine, or another kind of processor, may"
            " round otherwise. Replay it on what it was searched on."
        )
    output.report(data, *lines)
    if not fits:
        click.get_current_context().exit(DOES_NOT_FIT if same_engine else OTHER_ENGINE)


def _lines(stored: StoredSearch, done: Replayed, info: RuntimeInfo) -> Iterator[str]:
    """The comparison for a reader."""
    engine = f"{info.name} {info.version}"
    yield f"Job {stored.job_id}, {stored.state}: {engine} generates it again."
    if stored.attempts > 1:
        yield f"{stored.attempts} attempts searched it; each went on from the one before."
    if done.failed:
        yield f"Branches that had failed and are taken as failed: {done.failed}."
    if done.read_otherwise:
        yield (
            f"Same text, another answer read in it by this version: {done.read_otherwise}."
            " `marco verify` checks the answers stored."
        )
    if stored.state in ("queued", "running"):
        yield "It has not ended: these are its rounds so far."
    elif stored.stop_reason in ("cancelled", "seconds", "deadline", None):
        yield f"It ended early ({stored.stop_reason or 'an error'})."
    for other in dict.fromkeys(stored.engines):
        if other != engine:
            yield f"Searched on {other}, this is {engine}: its last digits may differ."
    if info.lacks:
        yield f"What this server can't do or say: {'; '.join(info.lacks)}."
    if info.revision == UNKNOWN:
        yield "It does not say which revision it serves: other weights may bear the same name."
    if done.same_bits:
        counts = f"rounds: {done.rounds}, rollouts: {done.rollouts}, nodes: {done.nodes}"
        yield f"The same tree, bit for bit ({counts})."
        return
    yield (
        f"{done.same_rollouts} of {done.rollouts} rollouts have the same text,"
        f" {done.same_answers} the same answer; {done.same_nodes} of {done.nodes} nodes are"
        " the same bit for bit."
    )
    if done.greatest_gap:
        yield f"Log-probs of the same tokens differ by {done.greatest_gap:.3g} at most."
    yield f"First difference: {done.first}"


Ways = Iterable[tuple[str, str, float]]
"""Rewards, votes and powers."""


def _rescore_file(traces: Path, grader: Grader, ways: Ways) -> None:
    """Score the searches in `traces` under each reward, vote and power, and print a table."""
    known = [t for t in read(traces) if t.key in grader]
    found = [rescore(known, grader, reward=r, vote=v, sharpness=p) for r, v, p in ways]
    head = ("reward", "vote", "sharpness", "accuracy %", "95 %", "AUROC", "within a problem")
    lines = [
        (
            r.reward,
            r.vote,
            f"{r.sharpness:g}",
            percent(r.accuracy),
            f"{percent(r.low)} to {percent(r.high)}",
            "" if r.auroc is None else f"{r.auroc:.3f}",
            "" if r.auroc_within is None else f"{r.auroc_within:.3f}",
        )
        for r in found
    ]
    data = [r.to_json() for r in found]
    output.report(data, f"{len(known)} problems\n\n{table(head, lines)}")


def _rescore_job(stored: StoredSearch, ways: Ways) -> None:
    """Print what the stored tree answers under each reward, vote and power."""
    tree = Tree.restore(stored.nodes, stored.rollouts)
    trace = traced(
        str(stored.job_id),
        stored.job,
        tree,
        run="",
        config=stored.plan.config,
        stop_reason=str(stored.stop_reason),
        seconds=0.0,
        keep_tokens=True,
    )
    names = ("reward", "vote", "sharpness", "answer", "share")
    found = []
    for reward, vote, power in ways:
        key, share = answer_under(trace, reward=reward, vote=vote, sharpness=power)
        answer = None if key is None else trace.answers[key]
        found.append((reward, vote, power, answer, share))
    lines = [(r, v, f"{p:g}", " ".join((a or "").split()), percent(s)) for r, v, p, a, s in found]
    output.report(
        [dict(zip(names, row, strict=True)) for row in found],
        f"job {stored.job_id}: {len(stored.rollouts)} rollouts",
        "",
        table((*names[:-1], "share %"), lines),
    )
