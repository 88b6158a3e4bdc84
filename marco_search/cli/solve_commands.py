"""Commands that answer in one go: solve, demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template
from typing import Any
from uuid import UUID, uuid4

import click
from rich.text import Text

from marco_search import models
from marco_search import settings as settings_module
from marco_search.cli import output
from marco_search.cli.job_input import (
    given_options,
    job_from_options,
    kind_options,
    read_lines,
    search_options,
)
from marco_search.cli.job_text import jobs_table, result_json, result_report, show_following
from marco_search.cli.options import command
from marco_search.cli.session import Session, session
from marco_search.cli.sql_command import rows_table
from marco_search.cli.tree_text import draw_tree, tree_json
from marco_search.engine import job_result, search_job
from marco_search.errors import LocalServiceFailed, MarcoError
from marco_search.forks import ending_with
from marco_search.jobs import Job
from marco_search.pocket import MODEL_DIR
from marco_search.render.layout import one_line, short_id
from marco_search.search.branches import Finish
from marco_search.search.mcts import Search
from marco_search.search.rewards import mean
from marco_search.search.tree import Tree
from marco_search.store.reads import job_record
from marco_search.store.reads.job_record import Fork, JobRecord, TreeRow
from marco_search.store.reads.queries import JobStatus
from marco_search.store.reads.reader_sql import run_query


@command()
@click.argument("question")
@kind_options
@search_options
@click.option("--tree", is_flag=True, help="Draw the search tree.")
@click.option("--thought", is_flag=True, help="Print the best answer's thought as well.")
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
    """The candidates passed over where a node begins, by its id; as in the view audit.forks."""
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


EXAMPLES = MODEL_DIR / "demo.jsonl"
OPTIONS = {"strategy": "auto", "rollouts": 16}
REAL_MODEL = "smollm2"
EVERYDAY = Path(__file__).with_name("everyday.jsonl")
REAL_OPTIONS = {"strategy": "vote", "rollouts": 5}
WEAK = (
    "SmolLM2-135M is a real pretrained language model, and a weak one: expect wrong answers. It "
    "shows that the whole way works with a model that nobody made for it."
)
TIMEOUT_S = 600.0
_GRACE_S = 10.0
QUESTION = "Tom has 3 boxes with 12 eggs each. Tom loses 7 eggs. How many eggs does Tom have now?"
QUERIES = {
    "Of each answer, the token the model was least sure of": """\
SELECT DISTINCT ON (a.job_id) right(a.job_id::text, 8) AS job, a.text AS answer,
    t.token, round(t.c::numeric, 3) AS confidence, n.text AS in_step
FROM audit.jobs AS j
JOIN audit.answers AS a ON a.job_id = j.job_id AND a.rank = 1
JOIN nodes AS n ON n.job_id = j.job_id AND n.node_id = ANY (a.path)
CROSS JOIN unnest(n.token_texts, n.confidences) AS t (token, c)
WHERE j.batch_id = '$batch'
ORDER BY a.job_id, t.c""",
    "Visits and value along the winning path of the tree above": """\
SELECT t.depth, t.action, t.visits, round(t.value::numeric, 4) AS value,
    round(t.confidence::numeric, 4) AS confidence, t.text
FROM audit.answers AS a
JOIN audit.tree AS t ON t.job_id = a.job_id AND t.node_id = ANY (a.path)
WHERE a.job_id = '$job' AND a.rank = 1 ORDER BY t.depth""",
    "Tokens and time, by kind of job": """\
SELECT kind, count(*) AS jobs, sum(generated_tokens) AS tokens,
    round(sum(seconds)::numeric, 1) AS seconds,
    round((sum(generated_tokens) / nullif(sum(seconds), 0))::numeric) AS tokens_per_second,
    round(max(seconds_queued)::numeric, 1) AS longest_in_queue
FROM audit.jobs WHERE batch_id = '$batch'
GROUP BY kind ORDER BY tokens DESC""",
}
"""What can be asked of stored trees: a title, and SQL that `marco sql` runs as it is shown."""


@command()
@click.argument("file", required=False)
@search_options
@click.option(
    "-c", "--concurrency", type=click.IntRange(min=1, max=64), default=2, metavar="N",
    help="Jobs run at once.",
)  # fmt: skip
@click.option(
    "--real", is_flag=True,
    help="Ten everyday questions for SmolLM2-135M, a weak real model; downloads it once (93 MB).",
)  # fmt: skip
def demo(file: str | None, concurrency: int, real: bool, **values: Any) -> None:
    """Answer the jobs in FILE (default: examples/demo.jsonl) end to end.

    Starts Postgres and Redis (or uses DATABASE_URL and REDIS_URL), brings the schema up to
    date, starts a worker, submits the jobs, follows them, and shows the answers, one search
    tree, and three SQL queries. Everything it started is stopped at the end; the data stays.
    """
    began, batch_id = time.monotonic(), uuid4()
    defaults = REAL_OPTIONS if real else OPTIONS
    file = file or str(EVERYDAY if real else EXAMPLES)
    jobs = list(read_lines(file, defaults | given_options(values)).values())
    if real:
        _say(WEAK)
        path = models.get(settings_module.load(), REAL_MODEL)
        os.environ |= {"MARCO_MODEL": str(path), "MARCO_RUNTIME": "embedded"}
        settings_module.load.cache_clear()
        _say(f"{path.name} is there after {time.monotonic() - began:.1f} s.")
    with session(creates=True, migrates=True) as here:
        _say(f"Postgres and Redis answer after {time.monotonic() - began:.1f} s.")
        lines = _answered(here, jobs, batch_id, concurrency)
        figures: dict[str, float] = {
            "jobs": len(lines),
            "answered": sum(line.answer is not None for line in lines),
            "correct": sum(bool(line.correct) for line in lines),
            "checked": sum(line.correct is not None for line in lines),
            "nodes": sum(line.nodes for line in lines),
            "tokens": sum(line.generated_tokens for line in lines),
            "seconds": round(time.monotonic() - began, 2),
        }
        path = here.settings.home / "bench" / "demo.json"  # where benchmarks put theirs
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")
        if not output.as_json():
            _show(here, batch_id, lines, figures, path)
        if real:
            _say(f"\nA weak real model: {figures['correct']} of {figures['checked']} right.")
            _say(f"`{own_name()} model use {REAL_MODEL}` makes it the default.")
    if output.as_json():
        output.print_json(figures | {"batch_id": batch_id, "results": lines})
    if figures["answered"] < figures["jobs"]:
        click.get_current_context().exit(output.JOBS_NOT_DONE)


def _say(text: str) -> None:
    if not output.as_json():
        output.show(text)


def _answered(
    here: Session, jobs: Sequence[Job], batch_id: UUID, concurrency: int
) -> list[JobStatus]:
    """Submit the jobs and follow them until a worker has answered them."""
    producer = here.producer(notices=False)  # its own worker is starting
    with worker_process(concurrency, here.settings.home) as check_worker:
        ids = [handle.id for handle in producer.submit_many(jobs, batch_id=batch_id)]
        _say(f"{len(ids)} jobs submitted; a worker with {concurrency} processes runs.")
        try:
            followed = producer.follow(ids, TIMEOUT_S)
            return show_following(followed, quiet=output.as_json(), check=check_worker)
        except BaseException:  # also after Ctrl-C: no later worker should run them
            with suppress(MarcoError):
                producer.cancel_many(ids)
            raise


def _show(
    here: Session, batch_id: UUID, lines: Sequence[JobStatus], figures: dict[str, float], path: Path
) -> None:
    """Show the answers, one search tree, the queries and what to do next."""
    width = output.terminal_width()
    output.show("", jobs_table(lines, width=width, with_state=False))
    with here.database.transaction() as conn:
        answered = (line.job_id for line in lines if line.answer is not None)
        records = (job_record.read(conn, job_id) for job_id in answered)
        record = min(records, key=_dullness, default=None)
    if record is not None:
        title = f"The search tree of {short_id(record.job.job_id)} (* the way to the answer)"
        tree = draw_tree(record.nodes, record.winning_path, limit=24)
        output.show("", Text(title, style="bold"), one_line(record.job.subject), tree)
        with here.database.connect() as conn:
            for title, template in QUERIES.items():
                sql = Template(template).substitute(batch=batch_id, job=record.job.job_id)
                result = run_query(conn, sql)
                table = rows_table(result.columns, result.rows, width=width)
                output.show("", Text(title, style="bold"), Text(sql, style="dim"), "", table)
    right = "{correct} of {checked} right, " if figures["checked"] else ""
    text = f"{{answered}} of {{jobs}} answered, {right}{{nodes:,}} nodes, {{tokens:,}} tokens"
    output.show("", f"{text.format(**figures)}, {figures['seconds']:.1f} s. Figures: {path}")
    output.show("", next_steps(own_name(), record and record.job.job_id))


def _dullness(record: JobRecord) -> tuple[bool | int, ...]:
    """Least where the search had something to decide: several answers, the best of them right.

    Better still if the way to that answer leads through a reflection. Of those one in plain
    ASCII, which every terminal can show, and with the smallest tree.
    """
    reflections = {node.node_id for node in record.nodes if node.action == "reflection"}
    return (
        record.job.kind != "reasoning",
        len(record.answers) < 2,
        not record.job.correct,
        reflections.isdisjoint(record.winning_path),
        not record.job.subject.isascii(),
        record.job.nodes,
    )


def own_name() -> str:
    """The command that runs this program again, as it was started."""
    started = Path(sys.argv[0])
    if started.name == "marco" and started.is_absolute() and started.is_relative_to(Path.cwd()):
        return str(started.relative_to(Path.cwd()))
    return "marco"


def next_steps(marco: str, job_id: object) -> str:
    """Commands that work as printed: the data is still there."""
    examples = Path("examples/batch.jsonl")  # of a checkout
    jobs = examples if examples.exists() else f'--question "{QUESTION}"'
    commands = [
        'sql "select count(*) from nodes"',
        *([] if job_id is None else [f"show {short_id(job_id)} --full"]),
        f'solve "{QUESTION}" --tree',
        "up       # Postgres and Redis stay",
        "worker   # in another terminal",
        f"submit {jobs} && {marco} watch",
    ]
    heading = "Nothing is left running; the data is kept. To look at it, and to go on:"
    return "\n".join([heading, *(f"  {marco} {command}" for command in commands)])


@contextmanager
def worker_process(processes: int, home: Path) -> Iterator[Callable[[], None]]:
    """A `marco worker` of its own that runs `processes` jobs at once, as long as the block runs.

    It never outlives this process. Gives a function that raises LocalServiceFailed, with the end
    of the worker's log, if the worker has ended.
    """
    home = home.absolute()
    log = home / "logs" / "worker.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["worker", "-c", str(processes), "--name", f"demo-{os.getpid()}"]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MARCO_HOME": str(home)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "marco_search.cli.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | paths,
            start_new_session=True,  # Ctrl-C reaches it through us, once
            preexec_fn=ending_with(os.getpid(), signal.SIGTERM),
        )

    def check() -> None:
        if (code := process.poll()) is not None:
            end = "\n  ".join(["", *log.read_text(errors="replace").splitlines()[-8:]])
            raise LocalServiceFailed(
                f"the worker ended with exit status {code}; its log is {log}{end}"
            )

    first = signal.SIGQUIT  # interrupted, it should not finish its jobs
    try:
        yield check
        first = signal.SIGTERM  # without work left it ends at once
    finally:
        for number in (first, signal.SIGQUIT):
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        # Its children are in its process group. What is left of it is killed.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
