"""A new runtime, step by step as CONTRIBUTING.md says: a module of its own, a line in RUNTIMES."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from marco_search import solve
from marco_search.errors import InvalidSettings
from marco_search.runtime import RUNTIMES, open_runtime
from marco_search.runtime.base import Runtime, RuntimeInfo
from marco_search.search.branches import (
    TOP_K,
    Branch,
    Expansion,
    Finish,
    Message,
    Segment,
    Token,
)
from marco_search.settings import Settings

ANSWER = "8 apples</Thought>\n<Output>\n8\n</Output>"


class ConstantRuntime:
    """Answers every branch with one text. The step that a real one would take over a network."""

    def __init__(self, settings: Settings) -> None:
        self.info = RuntimeInfo(
            name="constant",
            version="1",
            model=settings.runtime.partition(":")[2],
            revision="1",
            context_tokens=1000,
            exact=True,  # the same version generates the same bits again
        )

    def render(self, messages: Sequence[Message], options: Mapping[str, Any] | None = None) -> str:
        return "\n".join(message.content for message in messages)

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        return [
            Branch(branch_id=request.branch_id, segments=(generated(),), finish=Finish.STOP)
            for expansion in expansions
            for request in expansion.branches
        ]

    def abort(self) -> None:
        """Nothing is ever in flight."""

    def close(self) -> None:
        """No threads, no connections."""


def generated() -> Segment:
    """Tokens with their log-probs and the best candidates of every position."""
    words = ANSWER.split(" ")
    texts = [word + " " for word in words[:-1]] + words[-1:]
    top = tuple((i, -0.1 - i) for i in range(TOP_K))
    return Segment(ANSWER, tuple(Token(0, text, -0.1, top) for text in texts))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "constant", ConstantRuntime)
    monkeypatch.setenv("MARCO_RUNTIME", "constant:eight-marco-o1")


@pytest.mark.usefixtures("registered")
def test_a_registered_runtime_is_what_the_settings_name() -> None:
    runtime: Runtime = open_runtime(Settings())
    assert (runtime.info.name, runtime.info.model) == ("constant", "eight-marco-o1")


@pytest.mark.usefixtures("registered")
def test_a_search_runs_on_it() -> None:
    found = solve("Tom has 3 apples and buys 5 more. How many apples does he have?", rollouts=4)
    assert found.answer is not None
    assert found.answer.text == "8"


def test_a_runtime_that_is_not_registered_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="MARCO_RUNTIME: use embedded"):
        open_runtime(Settings.model_validate({"MARCO_RUNTIME": "constant:eight-marco-o1"}))
