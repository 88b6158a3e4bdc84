"""`marco eval`: a strategy over a set of problems, graded when its searches have ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from marco_search import __version__
from marco_search import settings as settings_module
from marco_search.cli import output
from marco_search.cli.job_input import given_options, search_options
from marco_search.cli.options import FILE, command, language_option, threads_option
from marco_search.cli.session import session
from marco_search.evaluation.data_sets import file_stem, load
from marco_search.evaluation.grading import Grader, curve
from marco_search.evaluation.report import (
    LEGEND,
    Row,
    bins_of,
    compare,
    compared,
    markdown_rows,
    require_few_failed,
    row,
    samples,
)
from marco_search.evaluation.run import Progress, Recipe, run, run_queued
from marco_search.evaluation.traces import Trace, read
from marco_search.jobs import SearchOptions
from marco_search.runtime import open_runtime
from marco_search.text import counted

_BUDGET = ("rollouts", "max_new_tokens", "max_tokens", "max_seconds")
_SHORTFALLS = {
    "failed": "failed",
    "cut_off": "cut off",
    "untagged": "without the end of a thought",
    "unanswered": "without an answer",
}


@command("eval")
@click.argument("data_set", metavar="SET")
@language_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N problems only.")
@click.option("--local", is_flag=True, help="Search in this process instead of the queue.")
@click.option(
    "--out", type=FILE, metavar="FILE",
    help="Keep traces here and go on from those there are. "
    "Default: evaluation/SET-STRATEGY.jsonl under MARCO_HOME.",
)  # fmt: skip
@click.option("--trees", is_flag=True, help="Keep token scores too, for marco replay --reward.")
@threads_option("Searches at once (with --local).")
@click.option(
    "--report", type=FILE, metavar="FILE",
    help="Write the report as Markdown here, and as JSON beside it.",
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
    "--plots", type=click.Path(path_type=Path), metavar="STEM",
    help="Write STEM-tokens and STEM-calibration as .png and .svg.",
)  # fmt: skip
@click.option(
    "--max-failed", type=click.FloatRange(0, 100), default=1, show_default=True,
    metavar="PERCENT", help="Report nothing if more of the rollouts failed than this.",
)  # fmt: skip
@search_options
def evaluate(
    data_set: str, language: str | None, limit: int | None, local: bool, out: Path | None,
    trees: bool, threads: int, report: Path | None, samples_file: Path | None,
    against: Path | None, plots: Path | None, max_failed: float, **values: Any,
) -> None:  # fmt: skip
    """Answer the problems of SET, grade them, and report accuracy and cost.

    SET is a held-out set of the pocket model (heldout_en, heldout_zh, heldout_range_en,
    heldout_range_zh, heldout_translation), mgsm:LANG from the Hugging Face hub, a TSV file as
    MGSM is published, a JSON Lines file with question and answer, or a folder of such files.
    The labels are used after the searches only. Run it again to go on where it stopped.
    Without --local the jobs go through the queue: have a worker running (`marco worker`).
    """
    problems = load(data_set, language=language, limit=limit)
    recipe = Recipe(options=SearchOptions(**given_options(values)), keep_tokens=trees)
    strategy, settings = recipe.options.strategy, settings_module.load()
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
    about = {
        "set": f"{data_set}, {counted(found.n, 'problem')}",
        "model": _of_all(traces, "model"),
        "profile": _of_all(traces, "profile"),
        "strategy": strategy,
        "budget": _budget(recipe.options),
        "seed": str(recipe.options.seed),
        "date": f"{datetime.now(UTC):%F %R} UTC, marco-search {__version__}",
        "searched": f"{found.n - stored} now, {stored} by an earlier run",
        "rollouts": ", ".join(_rollouts(found)),
        "traces": str(out),
    }
    lines = [f"# {file_stem(data_set)}: {strategy}", ""]
    lines += [*(f"- {name}: {value}" for name, value in about.items()), ""]
    lines += [markdown_rows([found]), "", LEGEND]
    data: dict[str, Any] = {
        "set": data_set,
        "language": language,
        "options": recipe.options.model_dump(mode="json", exclude_defaults=True),
        "results": {strategy: found.to_json()},
        "traces": str(out),
        "model": next((t.model for t in traces if t.model), None),
        "profile": next((t.profile for t in traces if t.profile), None),
        "budget": {name: getattr(recipe.options, name) for name in _BUDGET},
        "seed": recipe.options.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "resumed": stored,
    }
    if against:
        data["against"] = difference = compare(traces, read(against), grader)
        lines += ["", compared(difference, str(against))]
    text = "\n".join(lines)
    if samples_file:
        output.write_json_lines(samples_file, samples(traces, problems, grader))
    if report:
        _write(report, f"{text}\n")
        beside = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
        _write(report.with_suffix(".json"), beside)
    if plots:
        _plot(data_set, strategy, traces, grader, plots)
    output.report(data, text)


eval = evaluate  # the group finds a command by its name


def _of_all(traces: Sequence[Trace], name: str) -> str:
    return ", ".join(sorted({getattr(t, name) for t in traces} - {""})) or "unknown"


def _budget(options: SearchOptions) -> str:
    """The limits of each search."""
    given = {name: getattr(options, name) for name in _BUDGET}
    return ", ".join(f"{name} {value:,}" for name, value in given.items() if value is not None)


def _rollouts(found: Row) -> Iterator[str]:
    total = found.rollouts * found.n
    yield f"{total:,.0f}"
    for name, how in _SHORTFALLS.items():
        yield f"{getattr(found, name) * total:,.0f} {how}"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


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


def _plot(data_set: str, strategy: str, traces: list[Trace], grader: Grader, stem: Path) -> None:
    from marco_search.evaluation.plots import (
        accuracy_over_confidence,
        accuracy_over_tokens,
        plot,
    )

    points = {data_set: {strategy: curve(traces, grader)}}
    plot(accuracy_over_tokens, points, stem.with_name(f"{stem.name}-tokens"))
    bins = {data_set: bins_of(traces, grader)}
    plot(accuracy_over_confidence, bins, stem.with_name(f"{stem.name}-calibration"))
