"""One job's result: its ranked answers, the Thought if wanted, and what the search took."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from marco_search.cli.render.tables import Column, number, text_table
from marco_search.cli.render.text import fraction, one_line
from marco_search.jobs import JobResult
from marco_search.render.layout import STOP_REASONS, weighting


def report(result: JobResult, *, thought: bool = False) -> Group:
    """The answer on the first line, then what stands behind it."""
    parts: list[RenderableType] = [Text(outcome(result), style="bold"), ""]
    if thought:
        parts += [_thought(result), ""]
    if result.answers:
        parts += [answers_table(result), ""]
    ranking = weighting(result.vote, result.sharpness) if result.answers else ""
    about = "; ".join(part for part in (ranking, standing(result)) if part)
    lines = (verdict(result), about, totals(result))
    parts += [Text(line, style="dim") for line in lines if line]
    return Group(*parts)


def drop_thoughts(data: dict[str, Any]) -> None:
    """Take the Thoughts out of a result's JSON, where they were not asked for."""
    for answer in data["answers"]:
        answer.pop("thought", None)


def answers_table(result: JobResult) -> Table:
    """The n best distinct answers, best first."""
    columns = [
        number("rank"),
        Column("answer", flexible=True),
        number("confidence"),
        number("votes"),
        number("share"),
    ]
    rows = [
        [
            str(answer.rank),
            one_line(answer.text),
            fraction(answer.confidence),
            str(answer.votes),
            f"{answer.share:.0%}",
        ]
        for answer in result.answers
    ]
    return text_table(columns, rows)


def standing(result: JobResult) -> str:
    """Where its confidence stands among its model's own, or "" where that is not known."""
    if result.confidence_quantile is None:
        return ""
    return (
        f"its confidence is higher than in {result.confidence_quantile:.0%} of the model's "
        "latest jobs"
    )


def totals(result: JobResult) -> str:
    """One line: rollouts, nodes, tokens, seconds, and why the search ended."""
    cached = result.cached_tokens / result.prompt_tokens if result.prompt_tokens else 0.0
    parts = [
        f"{result.strategy}",
        f"{result.rollouts} rollouts",
        f"{result.nodes} nodes",
        f"{result.generated_tokens:,} tokens generated",
        f"{result.prompt_tokens:,} prompt tokens ({cached:.0%} from the prefix cache)",
        f"{result.seconds:.2f} s",
    ]
    if result.stop_reason:
        parts.append(STOP_REASONS.get(result.stop_reason, result.stop_reason))
    return ", ".join(parts)


def verdict(result: JobResult) -> str:
    """The best answer against the expected one, or "" where none is known."""
    if result.expected is None:
        return ""
    outcome = {True: "right", False: "wrong", None: "not compared"}[result.correct]
    return f"expected {one_line(result.expected)}: {outcome}"


def _thought(result: JobResult) -> Text:
    """The best answer's Thought as the model wrote it, control characters made visible."""
    best = result.answer
    if best is None or best.thought is None:
        return Text("(no thought)", style="dim")
    lines = [one_line(line) for line in best.thought.strip().splitlines()]
    return Text("\n".join(lines))


def outcome(result: JobResult) -> str:
    """A first line: the answer, or what became of the job."""
    if result.error:
        return f"{result.state}: {result.error_type}: {one_line(result.error)}"
    if result.answer is None:
        return f"{result.state}: no answer"
    return one_line(result.answer.output or result.answer.text)
