"""Commands about evaluation: eval, replay with its other rewards, calibrate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import click

from marco_search import __version__, profiles
from marco_search import settings as settings_module
from marco_search.cli import output
from marco_search.cli.job_input import given_options, profile_options, search_options
from marco_search.cli.options import FILE, command, language_option, tenants, threads_option
from marco_search.cli.session import session
from marco_search.engine import profile_of
from marco_search.errors import InputError, InvalidDataSet
from marco_search.evaluation.calibration import findings, recipes, require_enough
from marco_search.evaluation.data_sets import file_stem, load
from marco_search.evaluation.grading import Grader, answer_under, rescore
from marco_search.evaluation.report import (
    Row,
    compare,
    percent,
    require_few_failed,
    row,
    samples,
    table,
)
from marco_search.evaluation.run import Progress, Recipe, run, run_queued
from marco_search.evaluation.statistics import points, rounded
from marco_search.evaluation.traces import Trace, read, traced
from marco_search.files import write_text
from marco_search.jobs import SearchOptions
from marco_search.kinds import kind_of
from marco_search.replay import replay as generate_again
from marco_search.runtime import open_runtime
from marco_search.runtime.base import UNKNOWN
from marco_search.search.rewards import EXTERNAL, REWARDS
from marco_search.search.tree import Tree
from marco_search.store.reads import job_record
from marco_search.store.reads.job_record import StoredSearch
from marco_search.text import counted

_BUDGET = ("rollouts", "max_new_tokens", "max_tokens", "max_seconds")


@command("eval")
@click.argument("data_set", metavar="SET")
@language_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N problems only.")
@click.option("--local", is_flag=True, help="Search in this process instead of the queue.")
@click.option(
    "--out", type=FILE, metavar="FILE",
    help="Keep traces here, and resume from existing ones. "
    "Default: evaluation/SET-STRATEGY.jsonl under MARCO_HOME.",
)  # fmt: skip
@click.option("--trees", is_flag=True, help="Also keep token scores, for marco replay --reward.")
@threads_option("Searches at once (with --local).")
@click.option(
    "--report", type=FILE, metavar="FILE",
    help="Write the report here as Markdown, and as JSON next to it.",
)  # fmt: skip
@click.option(
    "--samples", "samples_file", type=FILE, metavar="FILE",
    help="Write a JSON line for each problem: question, expected, answer, right, tokens, "
    "confidence, rollouts and the hash of its trace.",
)  # fmt: skip
@click.option(
    "--against", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Compare with the traces of another run of SET, problem by problem.",
)  # fmt: skip
@click.option(
    "--max-failed", type=click.FloatRange(0, 100), default=1, metavar="PERCENT",
    help="Report nothing if more of the rollouts failed.",
)  # fmt: skip
@search_options
def evaluate(
    data_set: str, language: str | None, limit: int | None, local: bool, out: Path | None,
    trees: bool, threads: int, report: Path | None, samples_file: Path | None,
    against: Path | None, max_failed: float, **values: Any,
) -> None:  # fmt: skip
    """Answer the problems of SET, grade them, and report accuracy and cost.

    SET is a held-out set of the pocket model (heldout_en, heldout_zh, heldout_range_en,
    heldout_range_zh, heldout_translation), mgsm:LANG from the Hugging Face hub, a TSV file as
    MGSM is published, a JSON Lines file with question and answer, or a folder of such files.
    Labels are used only after the searches. Run it again to resume. Without --local the jobs go
    through the queue: have a worker running (`marco worker`).
    """
    problems = load(data_set, language=language, limit=limit)
    recipe = Recipe(options=SearchOptions(**given_options(values)), keep_tokens=trees)
    strategy, settings = recipe.options.strategy, settings_module.load()
    budget = {name: getattr(recipe.options, name) for name in _BUDGET}
    if out is None:
        name = f"{file_stem(data_set)}-{language or 'all'}-{strategy}.jsonl"
        out = settings.home / "evaluation" / name
    resumed: list[int] = []
    with output.console(stderr=True).status("evaluating") as status:

        def on_progress(progress: Progress) -> None:
            if not resumed and progress.resumed:
                click.echo(
                    f"{progress.resumed} of {progress.total} problems are in {out} from an "
                    "earlier run and are not searched again",
                    err=True,
                )
            resumed.append(progress.resumed)
            status.update(progress_text(progress))

        if local:
            with closing(open_runtime(settings)) as runtime:
                traces = run(
                    problems, recipe, runtime, out, threads=threads, on_progress=on_progress
                )
        else:
            with session(creates=True) as here:
                producer = here.producer()
                traces = run_queued(problems, recipe, out, producer, on_progress=on_progress)
    require_few_failed(traces, max_failed / 100)
    grader = Grader(problems)
    found, stored = row(strategy, traces, grader), max(resumed, default=0)
    data: dict[str, Any] = {
        "set": data_set,
        "language": language,
        "options": recipe.options.model_dump(mode="json", exclude_defaults=True),
        "results": {strategy: found.to_json()},
        "traces": str(out),
        "model": next((t.model for t in traces if t.model), None),
        "profile": next((t.profile for t in traces if t.profile), None),
        "budget": budget,
        "seed": recipe.options.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "resumed": stored,
    }
    if against:
        data["against"] = compare(traces, read(against), grader)
    text = report_text(found, data, traces, against)
    if samples_file:
        output.write_json_lines(samples_file, samples(traces, problems, grader))
    if report:
        markdown = report.with_suffix(".md") if report.suffix == ".json" else report
        write_text(markdown, f"{text}\n")
        beside = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
        write_text(report.with_suffix(".json"), beside)
    output.report(data, text)


eval = evaluate  # the group finds a command by its name


def report_text(
    found: Row, data: Mapping[str, Any], traces: Sequence[Trace], other: Path | None = None
) -> str:
    """The report of a run in Markdown; `other`: the traces that `data` compares it with."""

    def of_all(name: str) -> str:
        return ", ".join(sorted({getattr(t, name) for t in traces} - {""})) or "unknown"

    return output.rendered(
        "evaluation.jinja", row=found, data=data, models=of_all("model"),
        profiles=of_all("profile"), stem=file_stem(data["set"]), other=other,
        percent=percent, points=points, counted=counted,
    )  # fmt: skip


def progress_text(progress: Progress) -> str:
    """One line: done, accuracy so far with its interval, tokens, time left."""
    parts = [f"{progress.done} of {progress.total}"]
    if progress.failed:
        parts.append(f"{progress.failed:,} of {progress.rollouts:,} rollouts failed")
    if progress.graded:
        low, high = progress.interval
        share = progress.right / progress.graded
        parts.append(f"{100 * share:.1f} % right ({100 * low:.1f} to {100 * high:.1f})")
    parts.append(f"{progress.tokens:,} tokens")
    if progress.seconds_left is not None:
        parts.append(f"{progress.seconds_left:.0f} s left")
    return ", ".join(parts)


@command()
@click.argument("target", metavar="JOB|TRACES")
@tenants
@click.option("--set", "data_set", metavar="SET", help="TRACES: where the labels are.")
@click.option("--language", metavar="LANG", help="TRACES: which file of a folder, or of MGSM.")
@click.option(
    "--reward", "rewards", multiple=True, metavar="NAME",
    help="Score with this reward instead of generating; repeatable.",
)  # fmt: skip
@click.option(
    "--vote", "votes", multiple=True, metavar="NAME",
    help="And with this vote: vote, weighted, best, borda or tree.",
)  # fmt: skip
@click.option(
    "--sharpness", "powers", type=float, multiple=True, metavar="P",
    help="And with weights to this power.",
)  # fmt: skip
def replay(
    target: str, data_set: str | None, language: str | None, rewards: tuple[str, ...],
    votes: tuple[str, ...], powers: tuple[float, ...],
) -> None:  # fmt: skip
    """Generate JOB again from its stored seed, prompt, configuration and model, and compare.

    Reports whether the tree is the same, node by node; with the embedded engine it is, bit for bit.
    Other engines may round differently: then it reports how much agrees and where the first
    difference is. A different model or revision is refused. Nothing is stored. Exits with 9 if the
    text differs; with the embedded engine, if a single bit does. If the job was searched on another
    engine or kind of processor, which may round otherwise, it exits with 10 instead.

    With --reward, --vote or --sharpness nothing is generated: says what the job's stored tree
    answers under them (by default with the job's own vote). With a file, TRACES of
    `marco eval --trees`, the same for all its trees: how many are right.
    """
    path = Path(target)
    if path.exists() and not path.is_dir():
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
        with here.database.transaction(one_moment=True) as conn:
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
    same = done.same_bits if info.exact else same_text
    data = asdict(done)
    data |= {
        "job_id": stored.job_id,
        "state": stored.state,
        "ok": same,
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
    text = output.rendered(
        "replay.jinja", stored=stored, done=done, info=info, engine=engine, unknown=UNKNOWN,
        same=same, same_engine=same_engine,
    )  # fmt: skip
    output.report(data, text)
    if not same:
        click.get_current_context().exit(
            output.DOES_NOT_FIT if same_engine else output.OTHER_ENGINE
        )


Ways = Iterable[tuple[str, str, float]]
"""Rewards, votes and powers."""


def _rescore_file(traces: Path, grader: Grader, ways: Ways) -> None:
    """Score the searches in `traces` under each reward, vote and power, and print a table."""
    # One that was searched again, after failures, counts once: as it went the last time.
    known = list({(t.key, t.run): t for t in read(traces) if t.key in grader}.values())
    if not known:
        raise InvalidDataSet(f"{traces}: has no problem with an answer in the set")
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
    problems = len({t.key for t in known})
    searches = "" if len(known) == problems else f", {len(known):,} searches"
    output.report(data, f"{counted(problems, 'problem')}{searches}\n\n{table(head, lines)}")


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
    found, merge = [], kind_of(stored.job).merge
    for reward, vote, power in ways:
        key, share = answer_under(trace, reward=reward, vote=vote, sharpness=power, merge=merge)
        answer = None if key is None else trace.answers[key]
        found.append((reward, vote, power, answer, share))
    lines = [(r, v, f"{p:g}", " ".join((a or "").split()), percent(s)) for r, v, p, a, s in found]
    output.report(
        [dict(zip(names, row, strict=True)) for row in found],
        f"job {stored.job_id}: {len(stored.rollouts)} rollouts",
        "",
        table((*names[:-1], "share %"), lines),
    )


@command("calibrate")
@click.argument("data_set", metavar="SET")
@language_option
@click.option(
    "--limit", type=click.IntRange(1), default=20, metavar="N", help="The first N questions only."
)
@click.option(
    "--rollouts", type=click.IntRange(4), default=8, metavar="N",
    help="Rollouts of each question's tree.",
)  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(2), default=4, metavar="N",
    help="Samples of each question at each temperature.",
)  # fmt: skip
@click.option(
    "--error", type=click.FloatRange(0, 50), default=5, metavar="PERCENT",
    help="Questions whose answer early stopping may change.",
)  # fmt: skip
@threads_option("Searches at once.")
@click.option(
    "--traces", type=FILE, metavar="FILE",
    help="Keep the searches here, and resume from existing ones. "
    "Default: evaluation/calibrate-SET.jsonl under MARCO_HOME.",
)  # fmt: skip
@click.option("--name", metavar="NAME", help="Of the new profile. Default: OLD-calibrated.")
@click.option(
    "--out", type=FILE, metavar="FILE",
    help="Write the profile here. Default: profiles/NAME.toml under MARCO_HOME.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite an existing profile.")
@profile_options
def calibrate(
    data_set: str, language: str | None, limit: int, rollouts: int, samples: int, error: float,
    threads: int, traces: Path | None, name: str | None, out: Path | None, force: bool,
    **values: Any,
) -> None:  # fmt: skip
    """Measure the model on the questions of SET and write a profile for it.

    Some 20 questions like those it will be asked; answers are optional. SET is as for `marco eval`;
    in a .txt file each line is a question. Each is searched once on the configured runtime; a
    second run resumes from existing searches. From these follow the temperature, the vote's
    weights, when to stop, and whether reflection pays off.

    \b
    marco calibrate questions.txt
    marco solve --profile pocket-calibrated "..."
    """
    problems = load(data_set, language=language, limit=limit)
    require_enough(problems)
    settings, options = settings_module.load(), SearchOptions(**given_options(values))
    traces = traces or settings.home / "evaluation" / f"calibrate-{file_stem(data_set)}.jsonl"
    with (
        output.console(stderr=True).status("calibrating") as status,
        closing(open_runtime(settings)) as runtime,
    ):
        info, used = runtime.info, profile_of(options, runtime.info.model)
        name = name or f"{used.name.removesuffix('-calibrated')}-calibrated"
        out = out or settings.profiles / f"{name}.toml"
        profiles.override(used, {"name": name})  # a bad one is refused before hours of searching
        if out.exists() and not force:
            raise InputError(
                f"{out} already exists: overwrite it with --force, or choose another name"
            )
        made, parts = [], recipes(options, rollouts, samples)
        for i, recipe in enumerate(parts, start=1):

            def on_progress(progress: Progress, part: int = i) -> None:
                status.update(f"part {part} of {len(parts)}: {progress_text(progress)}")

            made.append(
                run(problems, recipe, runtime, traces, threads=threads, on_progress=on_progress)
            )
    require_few_failed([t for traces_of_run in made for t in traces_of_run], 0.05)
    found = findings(made[0], made[1:], problems, error / 100)
    about = (
        f"{info.model} {info.revision[:12]}, {found.problems} questions of {Path(data_set).name}, "
        f"{found.rollouts} rollouts, {datetime.now(UTC):%Y-%m-%d}"
    )
    # Named by hand only: it is for this model, and for questions like these.
    fields = {"name": name, "models": (), "measured_on": about}
    profile = profiles.override(used, fields | found.fields())
    write_text(out, profiles.dumps(profile))  # half of it would be in the way of all models
    data = {
        "model": info.model,
        "revision": info.revision,
        "set": data_set,
        "findings": rounded(asdict(found)),
        "fields": found.fields(),
        "profile": name,
        "file": str(out),
        "traces": str(traces),
    }
    path = str(out) if profiles.is_path(str(out)) else f"./{out}"
    how = name if (out.parent, out.stem) == (settings.profiles, name) else path
    use = f"Use it with --profile {how}, or MARCO_PROFILE={how} for all jobs."
    text = output.rendered("calibration.jinja", found=found, percent=percent, g="{:g}".format)
    output.report(data, about, "", text, "", f"Profile: {out}", use)
