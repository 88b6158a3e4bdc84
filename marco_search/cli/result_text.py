"""One job's result: its ranked answers, the Thought if wanted, and what the search took."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from marco_search.cli.tables import Column, number, text_table
from marco_search.cli.tree_text import fraction
from marco_search.jobs import JobResult
from marco_search.render.layout import STOP_REASONS, one_line, weighting

_ANSWERS = (
    number("rank"), Column("answer", flexible=True), number("confidence"), number("votes"),
    number("share"),
)  # fmt: skip


def result_report(result: JobResult, *, thought: bool = False) -> Group:
    """The answer on the first line, then what stands behind it."""
    parts: list[RenderableType] = [Text(_outcome(result), style="bold"), ""]
    if thought:
        parts += [_thought(result), ""]
    rows = [
        [str(a.rank), one_line(a.text), fraction(a.confidence), str(a.votes), f"{a.share:.0%}"]
        for a in result.answers
    ]
    parts += [text_table(_ANSWERS, rows), ""] if rows else []
    lines = (_verdict(result), _ranking(result), _totals(result))
    return Group(*parts, *(Text(line, style="dim") for line in lines if line))


def result_json(result: JobResult, *, thought: bool = False) -> dict[str, Any]:
    """The result as values that JSON has, the answers' Thoughts only if wanted."""
    data = result.model_dump(mode="json")
    if not thought:
        for answer in data["answers"]:
            del answer["thought"]
    return data


def _ranking(result: JobResult) -> str:
    """What the shares are shares of, and where the confidence stands, as far as is known."""
    parts = [weighting(result.vote, result.sharpness)] if result.answers else []
    if result.confidence_quantile is not None:
        parts.append(
            f"its confidence is higher than in {result.confidence_quantile:.0%} of the model's "
            "latest jobs"
        )
    return "; ".join(filter(None, parts))


def _totals(result: JobResult) -> str:
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


def _verdict(result: JobResult) -> str:
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
    return Text("\n".join(map(one_line, best.thought.strip().splitlines())))


def _outcome(result: JobResult) -> str:
    """A first line: the answer, or what became of the job."""
    if result.error:
        return f"{result.state}: {result.error_type}: {one_line(result.error)}"
    if result.answer is None:
        return f"{result.state}: no answer"
    return one_line(result.answer.output or result.answer.text)
