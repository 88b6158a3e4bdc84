"""Jobs and results as text: tables, reports, lines of a log, counts, a live screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from marco_search.cli.output import (
    Column,
    as_json,
    console,
    number,
    print_json_line,
    show,
    text_table,
)
from marco_search.cli.tree_text import fraction
from marco_search.jobs import JobResult
from marco_search.render.layout import ELLIPSIS, STOP_REASONS, one_line, short_id, weighting
from marco_search.store.reads.queries import JobStatus
from marco_search.text import counted

if TYPE_CHECKING:
    from marco_search.store.queue.dead_letters import DeadLetter

LONGEST_SUBJECT = 1000  # characters: the whole of it is in --json
_BAR = 10  # cells
_ORDER = {"running": 0, "queued": 2}


def heading(line: JobStatus) -> list[Text]:
    """What the job is: its whole id and state, and what was asked."""
    state = line.shown_state
    if line.attempts > 1:
        state += f", attempt {line.attempts}"
    if not line.final:
        state += f", {line.rollouts} of {line.rollout_budget or '?'} rollouts"
    if line.redacted_at is not None:
        state += f", redacted {line.redacted_at:%Y-%m-%d}: its texts are gone"
    subject = _shortened(line.subject)
    return [Text(f"job {line.job_id}  {line.kind}, {state}", style="dim"), Text(subject)]


def _shortened(subject: str) -> str:
    """On one line, shortened so that it does not push what follows off the screen."""
    text = one_line(subject)
    if len(text) <= LONGEST_SUBJECT:
        return text
    return f"{text[:LONGEST_SUBJECT]}{ELLIPSIS} ({len(text):,} characters; --json has them all)"


def archived(line: JobStatus, month: str) -> list[Text]:
    """A notice for a job whose tree is archived."""
    where = (
        f"Its ranked answers, {line.rollouts:,} rollouts and {line.nodes:,} nodes are in the "
        f"archive of {month}; `marco verify --archive FOLDER/{month}` checks that."
    )
    answer = one_line(line.answer or "no answer")
    return [Text(answer, style="bold"), Text(""), Text(where, style="dim")]


def _outcome(line: JobStatus) -> str:
    return one_line(line.answer or line.error or "")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _bar(line: JobStatus) -> str:
    if line.final or not line.rollout_budget:
        return str(line.rollouts) if line.rollouts else ""
    done = min(_BAR, _BAR * line.rollouts // line.rollout_budget)
    return "#" * done + "-" * (_BAR - done)


_JOB, _STATE, _QUESTION, _ANSWER, _RIGHT = (
    Column("job", lambda line: short_id(line.job_id)),
    Column("state", lambda line: line.shown_state),
    Column("question", lambda line: one_line(line.subject), flexible=True, least=16, drop=9),
    Column("answer", _outcome, flexible=True, least=20, wraps=True),
    Column("right", lambda line: {True: "yes", False: "no"}.get(line.correct, ""), drop=8),
)
_JOBS = (
    _JOB,
    _STATE,
    _QUESTION,
    _ANSWER,
    Column("expected", lambda line: one_line(line.expected or ""), flexible=True, drop=6),
    _RIGHT,
    number("conf.", lambda line: fraction(line.confidence, none=""), drop=7),
    number("share", lambda line: _percent(line.share), drop=5),
    number("quant.", lambda line: _percent(line.confidence_quantile), drop=4),
    number("tokens", lambda line: f"{line.generated_tokens:,}", drop=3),
    number("seconds", lambda line: f"{line.seconds:.1f}", drop=2),
    number("nodes", lambda line: str(line.nodes), drop=1),
)
_LIVE = (
    _JOB,
    _STATE,
    Column("rollouts", _bar, drop=7),
    _QUESTION,
    _ANSWER,
    _RIGHT,
    number("seconds", lambda line: f"{line.seconds:.1f}" if line.seconds else "", drop=6),
)
LETTERS = (
    _JOB,
    Column("state", lambda letter: letter.state),
    Column("error", lambda letter: one_line(str(letter.error.get("type", "")))),
    Column(
        "message",
        lambda letter: one_line(str(letter.error.get("message", ""))),
        flexible=True,
        least=12,
        wraps=True,
    ),
    _QUESTION,
    number("attempts", lambda letter: str(letter.attempts), drop=2),
    number("rounds", lambda letter: str(letter.rounds), drop=1),
)
_ANSWERS = (
    number("rank", lambda answer: str(answer.rank)),
    Column("answer", lambda answer: one_line(answer.text), flexible=True),
    number("confidence", lambda answer: fraction(answer.confidence)),
    number("votes", lambda answer: str(answer.votes)),
    number("share", lambda answer: _percent(answer.share)),
)


def jobs_table(
    lines: Sequence[JobStatus], *, width: int | None = None, with_state: bool = True
) -> RenderableType:
    """One row for each job with its progress, and a last one with totals."""
    columns = [column for column in _JOBS if with_state or column is not _STATE]
    checked = [line.correct for line in lines if line.correct is not None]
    sums = {
        "job": f"{len(lines):,} jobs",
        "right": f"{sum(checked)}/{len(checked)}" if checked else "",
        "tokens": f"{sum(line.generated_tokens for line in lines):,}",
        "seconds": f"{sum(line.seconds for line in lines):.1f}",
        "nodes": str(sum(line.nodes for line in lines)),
    }
    return text_table(columns, lines, width=width, footer=sums if len(lines) > 1 else None)


def counts(by_state: Mapping[str, int]) -> str:
    """ "16 jobs: 1 running, 15 succeeded"."""
    total = sum(by_state.values())
    parts = ", ".join(f"{count:,} {state}" for state, count in by_state.items())
    return counted(total, "job") + (f": {parts}" if parts else "")


def event(line: JobStatus) -> str:
    """One line of a log: a job and its new state."""
    text = f"{short_id(line.job_id)}  {line.shown_state:9}  {_outcome(line)}"
    if line.answer is not None and line.confidence is not None:
        share = "" if line.share is None else f", {line.share:.0%} of the vote"
        text += f"  ({fraction(line.confidence)}{share})"
    return text.rstrip()


def live_view(lines: Sequence[JobStatus], *, width: int, height: int) -> RenderableType:
    """A row for each job, as many as fit (those running first), and a line of counts."""
    rows = max(1, height - 4)
    shown = list(lines)
    if len(shown) > rows:
        # Running, then just ended, then waiting: what ended last is most likely looked for.
        newest = sorted(shown, key=lambda line: line.finished_at or line.created_at, reverse=True)
        shown = sorted(newest, key=lambda line: _ORDER.get(line.state, 1))[:rows]
    table = text_table(_LIVE, shown, width=width, lines=1)
    return Group(table, "", Text(progress(lines)))


def progress(lines: Sequence[JobStatus]) -> str:
    """ "16 jobs: 1 running, 15 succeeded; 1,204 tokens"."""
    by_state = Counter(line.shown_state for line in lines)
    tokens = sum(line.generated_tokens for line in lines)
    return f"{counts(dict(sorted(by_state.items())))}; {tokens:,} tokens"


def letter_report(letter: DeadLetter) -> list[Text]:
    """Why a job is dead or failed, what it cost, and the traceback of a bug."""
    lines = [
        f"job {letter.job_id}  {letter.kind}, {letter.state} since {letter.finished_at:%F %T} UTC",
        _shortened(letter.subject),
        "",
        f"{letter.error.get('type', 'no error')}: {one_line(str(letter.error.get('message', '')))}",
        f"{counted(letter.attempts, 'attempt')}: {letter.failures} failed, {letter.losses} lost "
        f"their worker; rounds kept: {letter.rounds}",
    ]
    trace = str(letter.error.get("traceback", "")).splitlines()
    if trace:
        indents = [" " * (len(line) - len(line.lstrip(" "))) for line in trace]
        lines += ["", *(i + one_line(line) for i, line in zip(indents, trace, strict=True))]
    return [Text(line) for line in lines]


def result_report(result: JobResult, *, thought: bool = False) -> Group:
    """The answer on the first line, then the details."""
    parts: list[RenderableType] = [Text(_first_line(result), style="bold"), ""]
    if thought:
        written = (result.answer and result.answer.thought) or "(no thought)"
        parts += [Text("\n".join(map(one_line, written.strip().splitlines()))), ""]
    parts += [text_table(_ANSWERS, result.answers), ""] if result.answers else []
    if result.expected is not None:
        outcome = {True: "right", False: "wrong", None: "not compared"}[result.correct]
        parts.append(Text(f"expected {one_line(result.expected)}: {outcome}", style="dim"))
    how = weighting(result.vote, result.sharpness, result.reward, result.spread, result.reference)
    ranking = [how] if result.answers else []
    if result.confidence_quantile is not None:
        place = f"{result.confidence_quantile:.0%} of the model's latest jobs"
        ranking.append(f"its confidence is higher than in {place}")
    if any(ranking):
        parts.append(Text("; ".join(filter(None, ranking)), style="dim"))
    if result.answer and result.shortfall:
        parts.append(Text(result.shortfall, style="dim"))
    return Group(*parts, Text(_totals(result), style="dim"))


def result_json(
    result: JobResult, *, thought: bool = False, question: bool = False
) -> dict[str, Any]:
    """The result as values that JSON has, the answers' Thoughts only if wanted."""
    data = result.model_dump(mode="json")
    if question:
        data["question"] = result.subject
    if not thought:
        for answer in data["answers"]:
            del answer["thought"]
    return data


def _totals(result: JobResult) -> str:
    """One line: rollouts, nodes, tokens, seconds, and why the search ended."""
    cached = result.cached_tokens / result.prompt_tokens if result.prompt_tokens else 0.0
    parts = [
        f"{result.strategy}",
        counted(result.rollouts, "rollout"),
        counted(result.nodes, "node"),
        f"{counted(result.generated_tokens, 'token')} generated",
        f"{counted(result.prompt_tokens, 'prompt token')} ({cached:.0%} from the prefix cache)",
        f"{result.seconds:.2f} s",
    ]
    if result.stop_reason:
        parts.append(STOP_REASONS.get(result.stop_reason, result.stop_reason))
    return ", ".join(parts)


def _first_line(result: JobResult) -> str:
    """A first line: the answer, or what became of the job."""
    if result.error:
        return f"{result.state}: {result.error_type}: {one_line(result.error)}"
    if result.archived:
        return f"{result.state}: its answers are in the archive of {result.archived}"
    if result.answer is None:
        why = f", {result.shortfall}" if result.shortfall else ""
        return f"{result.state}: no answer{why}"
    return one_line(result.answer.output or result.answer.text)


def show_following(
    states: Iterable[list[JobStatus]],
    *,
    quiet: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[JobStatus]:
    """Show what `Producer.follow` gives: live at a terminal, else a line for each change.

    The last of it. With --json the lines are JSON; with `quiet` there are none. `check` is
    called at each look and may raise.
    """
    out, last = console(), list[JobStatus]()
    live = out.is_terminal and not as_json() and not quiet
    # Drawn by hand: a thread that redraws would only repeat what is there.
    screen = Live(console=out, auto_refresh=False, transient=True) if live else None
    with screen or nullcontext():
        for lines in states:
            check()
            if screen is not None:
                view = live_view(lines, width=out.width, height=out.height)
                screen.update(view, refresh=True)
            for line in () if live or quiet else changed(last, lines):
                print_json_line(line) if as_json() else show(event(line))
            last = lines
    return last


def changed(before: Sequence[JobStatus], now: Sequence[JobStatus]) -> list[JobStatus]:
    """The jobs whose state has changed; at first, those that are no longer queued."""
    states = {line.job_id: line.shown_state for line in before}
    return [line for line in now if line.shown_state != states.get(line.job_id, "queued")]
