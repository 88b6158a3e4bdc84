"""A new runtime, step by step as CONTRIBUTING.md says: a module of its own, a line in RUNTIMES."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from marco_search import solve
from marco_search.errors import InvalidSettings, PromptTooLong, RuntimeUnavailable
from marco_search.runtime import RUNTIMES, open_runtime
from marco_search.runtime.base import Runtime, RuntimeInfo
from marco_search.search.branches import (
    MARCO_O1,
    TOP_K,
    Branch,
    BranchRequest,
    Expansion,
    Finish,
    Message,
    ReflectionPlacement,
    Segment,
    Token,
    TurnFormat,
)
from marco_search.settings import Settings
from tests.toy import PROMPT, ToyRuntime

THOUGHT = "8 apples</Thought>"
ANSWER = f"{THOUGHT}\n<Output>\n8\n</Output>"


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
            Branch(
                branch_id=request.branch_id,
                segments=(*reflected(request, expansion.turn), generated(ANSWER)),
                finish=Finish.STOP,
            )
            for expansion in expansions
            for request in expansion.branches
        ]

    def abort(self) -> None:
        """Nothing is ever in flight."""

    def close(self) -> None:
        """No threads, no connections."""


def reflected(request: BranchRequest, turn: TurnFormat) -> tuple[Segment, ...]:
    """What comes before the answer: nothing, or the phrase where it was asked for."""
    if request.reflect is ReflectionPlacement.NO:
        return ()
    phrase = Segment(turn.reflection + "\n")
    first = request.reflect is ReflectionPlacement.FIRST
    return (phrase,) if first else (generated(THOUGHT), phrase)


def generated(text: str) -> Segment:
    """Tokens with their log-probs and the best candidates of every position."""
    words = text.split(" ")
    texts = [word + " " for word in words[:-1]] + words[-1:]
    top = tuple((i, -0.1 - i) for i in range(TOP_K))
    return Segment(text, tuple(Token(0, part, -0.1, top) for part in texts))


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
    assert found.shortfalls.failed == 0


def test_a_runtime_that_is_not_registered_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="MARCO_RUNTIME: use embedded"):
        open_runtime(Settings.model_validate({"MARCO_RUNTIME": "constant:eight-marco-o1"}))


class Odd(ToyRuntime):
    """The toy model behind an author's mistake."""

    def __init__(self, mistake: Callable[[list[Branch]], list[Branch]]) -> None:
        super().__init__()
        self.mistake = mistake

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        return self.mistake(super().branch(expansions))


def opened(mistake: Callable[[list[Branch]], Any], monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setitem(RUNTIMES, "odd", lambda settings: Odd(mistake))
    return open_runtime(Settings.model_validate({"MARCO_RUNTIME": "odd"}))


def of_tokens(change: Callable[[Token], Token]) -> Callable[[list[Branch]], list[Branch]]:
    """Change every token; the segments' texts stay what the tokens make up."""

    def changed(segment: Segment) -> Segment:
        tokens = tuple(map(change, segment.tokens))
        return Segment("".join(t.text for t in tokens) if tokens else segment.text, tokens)

    return lambda found: [replace(b, segments=tuple(map(changed, b.segments))) for b in found]


ASKED = Expansion(
    node_id=0, prefix=PROMPT, branches=(BranchRequest(
        branch_id=0, seed=1, max_new_tokens=100, temperature=1.0,
    ),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda found: [], "returned nothing"),
        (lambda found: [replace(b, prompt_tokens=-1) for b in found], "prompt_tokens is -1"),
        (lambda found: [replace(b, cached_tokens=10**6) for b in found], "more cached"),
        (lambda found: [replace(b, seconds=math.nan) for b in found], "seconds is nan"),
        (
            lambda found: [
                replace(b, finish=Finish.FAILED, error="why", prompt_tokens=2**70) for b in found
            ],
            "prompt_tokens is",
        ),
        (of_tokens(lambda t: replace(t, top=())), "best candidates"),
        (of_tokens(lambda t: replace(t, logprob=math.nan)), "nan is not a log-probability"),
        (of_tokens(lambda t: replace(t, logprob=0.5)), "0.5 is not a log-probability"),
        (of_tokens(lambda t: replace(t, id=2**40)), "is not a token id"),
        (of_tokens(lambda t: replace(t, id=-1)), "-1 is not a token id"),
        (
            lambda found: [
                replace(b, segments=(replace(b.segments[0], text="other"), *b.segments[1:]))
                for b in found
            ],
            "do not make up the text",
        ),
    ],
)
def test_a_branch_that_can_t_be_right_has_failed(
    mistake: Callable[[list[Branch]], Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (branch,) = opened(mistake, monkeypatch).branch([ASKED])
    assert branch.finish is Finish.FAILED
    assert branch.segments == ()
    assert words in str(branch.error)
    assert str(branch.error).startswith("BranchFailed: ")


@pytest.mark.parametrize("reflect", [ReflectionPlacement.FIRST, ReflectionPlacement.AT_END])
def test_a_reflection_that_did_not_take_place_is_a_failure(
    reflect: ReflectionPlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(reflect: ReflectionPlacement) -> list[Expansion]:
        (request,) = ASKED.branches
        requests = (replace(request, branch_id=i, seed=i, reflect=reflect) for i in range(9))
        return [replace(ASKED, branches=tuple(requests))]

    runtime = opened(lambda found: found, monkeypatch)
    assert all(b.finish is not Finish.FAILED for b in runtime.branch(asked(reflect)))
    without = ToyRuntime().branch(asked(ReflectionPlacement.NO))
    ignored = opened(lambda _: without, monkeypatch).branch(asked(reflect))
    assert any("reflection phrase" in str(branch.error) for branch in ignored)
    assert {b.branch_id for b in ignored if b.finish is Finish.FAILED} == {
        b.branch_id
        for b in without
        if reflect is ReflectionPlacement.FIRST or MARCO_O1.end_in(b.continuation(MARCO_O1)) >= 0
    }

    def own_words(found: list[Branch]) -> list[Branch]:
        return [replace(b, segments=(Segment("Well."), *b.segments)) for b in found]

    for branch in opened(own_words, monkeypatch).branch(asked(ReflectionPlacement.NO)):
        assert "'Well.' was inserted" in str(branch.error)


def test_what_can_be_put_right_is(monkeypatch: pytest.MonkeyPatch) -> None:
    more = tuple((5000 + i, -9.1 - i) for i in range(4))
    odd = of_tokens(
        lambda t: replace(t, logprob=-0.1, top=(*more, *t.top), text=t.text.replace("s", "\x00"))
    )
    (plain,) = opened(lambda found: found, monkeypatch).branch([ASKED])
    (branch,) = opened(odd, monkeypatch).branch([ASKED])
    for token, same in zip(branch.segments[0].tokens, plain.segments[0].tokens, strict=True):
        assert token.logprob == array("f", [-0.1])[0], "as the trail stores it"
        assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)
        assert token.top == same.top, "the five best"
        assert token.text == same.text.replace("s", "\ufffd")


def test_an_error_of_its_own_says_that_the_runtime_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(_found: list[Branch]) -> list[Branch]:
        raise ConnectionResetError("gone")

    with pytest.raises(RuntimeUnavailable, match="ConnectionResetError: gone"):
        opened(lost, monkeypatch).branch([ASKED])

    def full(_found: list[Branch]) -> list[Branch]:
        raise PromptTooLong("full")

    with pytest.raises(PromptTooLong):
        opened(full, monkeypatch).branch([ASKED])
