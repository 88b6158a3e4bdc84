"""Commands about jobs: submit, status, watch, wait, show, results, cancel."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from marco_search.cli import batch_command, job_input, job_text, options, output
from marco_search.cli.job_text import jobs_table, result_json, show_following
from marco_search.cli.session import Session, session
from marco_search.cli.tree_text import draw_tree, tree_json
from marco_search.errors import IdempotencyConflict, InvalidBatch, InvalidJob
from marco_search.files import write_text
from marco_search.jobs import Job, JobResult
from marco_search.store.db import Conn
from marco_search.store.queue.states import JobState
from marco_search.store.reads import queries

FORMATS = ("html", "svg", "dot", "mermaid", "json")
DRAWN = 40  # nodes in the terminal
LATEST = 20
AT_ONCE = 500  # results held in memory
NONE_LEFT = "No job is queued or running."
NONE_ENDED = "No results: none of these jobs has ended."
_SOON = {
    "running": "stops within two seconds",
    "queued": "ends within two seconds, with the answers of its rounds",
}
_DEADLINES = {"deadline", "expires_in_s"}
_TERMS = {"priority", *_DEADLINES}

timeout_option = click.option(
    "--timeout", type=options.Finite(min=0), metavar="S",
    help="Give up after S seconds (exit code 6); the jobs continue.",
)  # fmt: skip


@options.command()
@click.argument("file", required=False)
@click.option("--question", metavar="TEXT", help="Submit this question instead of a file.")
@click.option("--priority", metavar="LEVEL", help="low, normal (default) or high.")
@click.option(
    "--deadline", metavar="TIME", help="Time after which the job expires: ISO 8601 with time zone."
)
@click.option(
    "--expires-in", "expires_in_s", type=float, metavar="S", help="The same, relative to now."
)
@click.option("--wait", "waits", is_flag=True, help="If too much is queued, wait and retry.")
@job_input.kind_options
@job_input.search_options
def submit(file: str | None, question: str | None, waits: bool, **values: Any) -> None:
    """Submit the jobs in FILE, a JSON Lines file ("-": standard input), and print their ids.

    The whole file is checked first: if any line is wrong, all wrong lines are reported and
    nothing is submitted. Search options, priority and deadline given here fill in what a line
    leaves open; the options about the kind of job go with --question.

    \b
    {"kind": "reasoning", "question": "What is 17 x 23?", "expected": "391"}
    {"kind": "translation", "text": "...", "source": "zh", "target": "en"}
    {"kind": "open_ended", "prompt": "...", "options": {"rollouts": 8}}
    """
    given = _jobs_to_submit(file, question, values)
    jobs = [_with_terms(job, values) for job in given.values()]
    from producer.uploads import when_room

    with session(creates=True) as here, _naming_lines(file, list(given)):
        producer = here.producer()
        handles = when_room(lambda: producer.submit_many(jobs), waits=waits)
    ids = [str(handle.id) for handle in handles]
    known = [str(handle.id) for handle in handles if not handle.created]
    new = len(ids) - len(known)
    batch = handles[0].batch_id
    data = {"ids": ids, "submitted": new, "known": known, "batch_id": batch}
    text = f"batch {batch}: {new:,} new, {len(known):,} known"
    if new and sys.stderr.isatty():
        text += ". `marco worker` answers them, `marco watch` follows"
    output.report(data, "\n".join(ids), remark=f"{text}.")


def _jobs_to_submit(
    file: str | None, question: str | None, values: dict[str, Any]
) -> dict[int, Job]:
    """By line of the file."""
    if (question is None) is (file is None):
        raise click.UsageError("Give a FILE, or a question with --question.")
    if file is None:
        return {1: job_input.job_from_options(str(question), values)}
    context = click.get_current_context()
    for name in job_input.KIND_OPTIONS:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} goes with --question: a file's lines carry it.")
    return job_input.read_lines(file, job_input.given_options(values))


@contextmanager
def _naming_lines(file: str | None, lines: Sequence[int]) -> Iterator[None]:
    """What the database refuses is said with its line of the file."""
    source = job_input.source_of(str(file))
    try:
        yield
    except (IdempotencyConflict, InvalidJob) as error:
        if file is None or error.index is None:
            raise
        line = f"line {lines[error.index]}"
        if isinstance(error, IdempotencyConflict):
            raise IdempotencyConflict(f"{source}, {line}, {error}") from None
        wrong = InvalidJob(f"{line}, {error.field}", error.reason)
        raise InvalidBatch(source, [wrong]) from None


def _with_terms(job: Job, values: dict[str, Any]) -> Job:
    """The job with priority and deadline of `values` where it has none. Raises InvalidJob."""
    own = {name: getattr(job, name) for name in job.model_fields_set}
    names = _TERMS if own.keys().isdisjoint(_DEADLINES) else {"priority"}
    given = {name: values[name] for name in names if values.get(name) is not None}
    return type(job).model_validate({**given, **own}) if given else job


@options.command()
@options.jobs_to_read
@click.option(
    "--state", type=click.Choice([s.value for s in JobState]), help="Only jobs in this state."
)
@click.option(
    "--limit", type=options.count(), default=LATEST, metavar="N",
    help="Latest jobs listed where none is named; 0 for all.",
)  # fmt: skip
def status(jobs: tuple[str, ...], state: str | None, limit: int) -> None:
    """Show the status of jobs: those named, or the latest.

    \b
    States: queued, running, succeeded, failed (not retried), dead (attempts used up, or it crashed
    several workers), cancelled, expired (past its deadline).
    """
    batch = options.chosen_batch(jobs)
    with session(needs_redis=False) as here:
        named = here.find(jobs) if jobs or batch else None
        with here.database.transaction() as conn:
            if named is not None:
                lines = queries.statuses(conn, named, tenant=here.tenant)
                lines = [line for line in lines if state in (None, line.state)]
            else:
                wanted = queries.JobFilter(tenant=here.tenant, state=state)
                newest = queries.page(conn, wanted, limit=limit or options.LARGEST_COUNT).jobs
                lines = list(newest[::-1])
            by_state = queries.state_counts(conn, here.tenant, batch)
            others = {} if named is not None else queries.other_tenants(conn, here.tenant)
            missing = queries.missing_models(conn, tenant=here.tenant)
        notices = here.producer(here.tenant).standstill(named)
    table = [jobs_table(lines, width=output.terminal_width()), ""] if lines else []
    output.report(
        {
            "counts": by_state,
            "jobs": lines,
            "missing_models": missing,
            "other_tenants": others,
            "notices": notices,
        },
        *table,
        job_text.counts(by_state),
        *(f"{model}: `marco requeue --restart` restarts them" for model in missing),
        notices=[*notices.values(), *_not_shown(others)],
    )


def _not_shown(others: Mapping[str, int]) -> Iterator[str]:
    """That other tenants have jobs, and how to see them."""
    if others:
        count = sum(others.values())
        one = next(iter(others)) if len(others) == 1 else None
        whose = f"tenant {one}" if one else f"{len(others)} other tenants"
        shown = f"--tenant {one}" if one else "--all-tenants"
        what = "1 job of {} is" if count == 1 else f"{count:,} jobs of {{}} are"
        yield f"{what.format(whose)} not shown: {shown}"


@options.command()
@options.jobs_to_read
@timeout_option
def watch(jobs: tuple[str, ...], timeout: float | None) -> None:
    """Follow jobs live until they end: those named, or all that have not ended.

    Without a terminal each state change is a line; with --json, a JSON line. For a batch the counts
    are shown, as by `marco batch watch`. Exits with 7 if a job did not succeed.
    """
    _follow(jobs, timeout, quiet=False)


@options.command()
@options.jobs_to_read
@timeout_option
def wait(jobs: tuple[str, ...], timeout: float | None) -> None:
    """Wait quietly until jobs end, those named or all, then print their status.

    Exits with 7 if a job did not succeed, with 6 after --timeout.
    """
    _follow(jobs, timeout, quiet=True)


def _follow(words: Sequence[str], timeout: float | None, *, quiet: bool) -> None:
    """Follow the jobs named, or all that have not ended; `quiet`: print only where they stand then.

    Exits with 7 if a job did not succeed.
    """
    if batch := options.chosen_batch(words):
        batch_command.follow(batch, timeout, quiet=quiet)
        return
    with session(needs_redis=False) as here:
        ids = _chosen(here, words, finished=False)
        every_s = 2.0 if quiet else 0.3
        followed = here.producer().follow(dict.fromkeys(ids), timeout, every_s=every_s)
        lines = show_following(followed, quiet=quiet)
    if quiet:
        table = jobs_table(lines, width=output.terminal_width())
        output.report({"jobs": lines}, table if lines else NONE_LEFT)
    elif not output.as_json():
        output.show(job_text.progress(lines) if lines else NONE_LEFT)
    if any(line.state != "succeeded" for line in lines):
        click.get_current_context().exit(output.JOBS_NOT_DONE)


def _chosen(here: Session, words: Sequence[str], *, finished: bool) -> list[UUID]:
    """The jobs named, or all that have finished, or have not."""
    if words or options.chosen_batch(words):
        return here.find(words)
    others = here.database.call(queries.other_tenants, here.tenant, finished=finished)
    output.notice(*_not_shown(others))
    return here.database.call(queries.jobs_of, here.tenant, finished=finished)


@options.command()
@click.argument("job")
@options.tenants
@click.option("--thought", is_flag=True, help="Print the best answer's thought as well.")
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="Edges below the root.")
@click.option(
    "--nodes", type=click.IntRange(min=1), metavar="N",
    help="Maximum number of nodes to draw: the winning path, then the most visited  "
    f"[default: {DRAWN}; in a file all, in Mermaid 400]",
)  # fmt: skip
@click.option("--full", is_flag=True, help="Draw all nodes with their full text.")
@click.option(
    "--format", "file_format", type=click.Choice(FORMATS),
    help="Write a document instead: html is one file that needs nothing else.",
)  # fmt: skip
@click.option(
    "-o", "--output", "file", type=options.FILE, metavar="FILE",
    help="Output file of --format (default: standard output).",
)  # fmt: skip
def show(
    job: str, thought: bool, depth: int | None, nodes: int | None, full: bool,
    file_format: str | None, file: Path | None,
) -> None:  # fmt: skip
    """Show JOB: its ranked answers, the cost of the search, and its tree.

    In the tree each node has its visit count and its value, the mean reward of the
    rollouts through it; * marks the path to the best answer.

    \b
    marco show 9cb008cd --format html -o job.html    a report to open in any browser
    marco show 9cb008cd --format dot | dot -Tpdf > job.pdf
    """
    if file is not None and file_format is None:
        raise click.UsageError("--output needs --format.")
    if file_format is not None and output.as_json():
        raise click.UsageError("--format and --json exclude each other.")
    if file_format is not None and (thought or full):
        raise click.UsageError("--thought and --full go without --format.")
    with session(needs_redis=False) as here:
        (job_id,) = here.find([job])
        if file_format is not None:
            from marco_search.console.reader import Reader
            from marco_search.console.rendering import render

            reader = Reader(here.database)
            text = render(reader, job_id, file_format, limit=nodes, depth=depth)
            text = text if text.endswith("\n") else f"{text}\n"
            if file in (None, Path("-")):
                output.echo(text, end="")
            else:
                write_text(file, text)
                output.note(f"Written: {file}")
            return
        from marco_search.store.reads import job_record

        with here.database.transaction(one_moment=True) as conn:
            record = job_record.read(conn, job_id)
            results = queries.results(conn, [job_id])
    line, tree, path = record.job, record.nodes, record.winning_path
    if output.as_json():
        result = result_json(results[0], thought=thought) if results else None
        output.print_json({"job": line, "result": result, "tree": tree_json(tree, path)})
        return
    output.show(*job_text.heading(line), "")
    if record.archived:
        output.show(*job_text.archived(line, record.archived))
    elif results:
        output.show(job_text.result_report(results[0], thought=thought))
    if tree:
        output.show("", draw_tree(tree, path, limit=nodes or DRAWN, depth=depth, full=full))


@options.command()
@options.jobs_to_read
@click.option("--jsonl", is_flag=True, help="One JSON object on each line.")
@options.file_option
@click.option("--thought", is_flag=True, help="Include the answers' thoughts (JSON).")
@options.question_option
def results(
    jobs: tuple[str, ...], jsonl: bool, file: Path | None, thought: bool, question: bool
) -> None:
    """Print the results of jobs that have ended: those named, or all, oldest first.

    Files are JSON Lines.
    """
    with session(needs_redis=False) as here:
        ids = _chosen(here, jobs, finished=True)
        with here.database.transaction() as conn:
            found = (
                result_json(result, thought=thought, question=question)
                for result in _results(conn, ids)
            )
            if file is not None or jsonl:
                output.print_or_write(file, found)
            elif output.as_json():
                output.print_json(list(found))
            else:
                lines = [line for line in queries.statuses(conn, ids) if line.final]
                table = jobs_table(lines, width=output.terminal_width())
                output.show(table if lines else NONE_ENDED)


def _results(conn: Conn, ids: Sequence[UUID]) -> Iterator[JobResult]:
    """In the order of the ids; jobs that have not ended are left out."""
    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        found = {result.job_id: result for result in queries.results(conn, some)}
        yield from (found[str(job_id)] for job_id in some if str(job_id) in found)


@options.command()
@options.jobs_to_change
@click.option(
    "--state",
    type=click.Choice(("queued", "running")),
    help="All jobs in this state, or one of these.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation of --all.")
def cancel(
    jobs: tuple[str, ...], tenant: str | None, state: str | None, everything: bool, yes: bool
) -> None:
    """Cancel jobs: those named, or all that match the options. "-" reads ids from standard input.

    A queued job is cancelled at once, a running one within two seconds, keeping the answers found
    so far. Jobs that have ended are not changed. Nothing is cancelled if a named job does not
    exist. --batch and --state select from the jobs of --tenant (default: MARCO_TENANT), or with
    --all of all tenants.
    """
    batch = options.chosen_batch(jobs)
    if jobs and (everything or state):
        raise click.UsageError("Give jobs, or --state, or --all.")
    if not (jobs or everything or (batch, tenant, state) != (None, None, None)):
        raise click.UsageError("Give jobs, or --batch, --tenant, --state or --all.")
    if tenant is not None and everything:
        raise click.UsageError("Give either --tenant or --all.")
    if everything and not yes and sys.stdin.isatty():
        options.confirm("Cancel jobs of all tenants?")
    from producer import EVERYONE

    with session() as here:
        if jobs:
            found = here.producer().cancel_many(here.find(jobs))
        else:
            whose = EVERYONE if everything else tenant
            wanted = JobState(state) if state else None
            found = here.producer().cancel_all(tenant=whose, batch_id=batch, state=wanted)
    data = {"jobs": [{"job_id": job_id, "state": state} for job_id, state in found.items()]}
    left = sum(state in _SOON for state in found.values())
    rest = f", {left} end within two seconds" if left else ""
    lines = [f"{job_id}  {_SOON.get(state, state)}" for job_id, state in found.items()]
    output.report(data, *(lines if jobs else [f"{len(found) - left} cancelled{rest}"]))
