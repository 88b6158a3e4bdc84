"""The reward formula and the cutting of a branch into actions."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marco_search import profiles
from marco_search.search.actions import Action, cut
from marco_search.search.branches import MARCO_O1, Token
from marco_search.search.rewards import mean, token_confidence, unsure

logprobs = st.floats(-40, 0, width=32)


def test_confidence_is_the_papers_formula() -> None:
    top = [log(0.5), log(0.2), log(0.1), log(0.1), log(0.05)]
    assert token_confidence(log(0.5), top) == pytest.approx(0.5 / 0.95)
    assert token_confidence(log(0.1), top) == pytest.approx(0.1 / 0.95)


def test_a_token_outside_the_top_five_keeps_the_formula() -> None:
    top = [log(p) for p in (0.3, 0.2, 0.2, 0.1, 0.1)]
    assert token_confidence(log(0.05), top) == pytest.approx(0.05 / 0.9)


@given(st.lists(logprobs, min_size=5, max_size=5), st.floats(0, 60))
def test_confidence_stays_within_bounds(top: list[float], below: float) -> None:
    assert 0.0 <= token_confidence(max(top), top) <= 1.0
    outside = min(top) - below
    assert 0.0 <= token_confidence(outside, top) <= 0.2 + 1e-12


def test_confidence_needs_candidates() -> None:
    with pytest.raises(ValueError, match="best candidates"):
        token_confidence(-1.0, [])


def test_nothing_generated_earns_nothing() -> None:
    assert mean([]) == 0.0
    assert mean([0.5, 1.0]) == 0.75


def tokens(*texts: str) -> list[Token]:
    return [Token(i, t, log(0.9), ((i, log(0.9)),)) for i, t in enumerate(texts)]


def texts(parts: list[Token], action: str, size: int = 64, open_: bool = True) -> list[str]:
    cuts = cut(parts, action, size, MARCO_O1, thought_open=open_)
    return ["".join(t.text for t in part) for _, part in cuts]


def test_a_step_is_a_line_and_the_answer_is_one_action() -> None:
    parts = tokens(
        "a", "b\n", "\n", "c", "\n", "</Thought>", "\n", "<Output>", "4", "</Output>", ""
    )
    assert texts(parts, Action.STEP) == ["ab\n\n", "c\n", "</Thought>\n<Output>4</Output>"]
    assert texts(parts, Action.WHOLE) == ["ab\n\nc\n", "</Thought>\n<Output>4</Output>"]


def test_a_line_break_within_a_token_ends_the_step() -> None:
    assert texts(tokens("a", ".\n\n", "b", ".\n"), Action.STEP) == ["a.\n\n", "b.\n"]


def test_a_mini_step_has_its_number_of_tokens() -> None:
    parts = tokens("a", "b", "c", "\n", "d", "</Thought>", "x", "y", "z")
    assert texts(parts, Action.MINI_STEP, 2) == ["ab", "c\n", "d", "</Thought>xyz"]


def test_a_mini_step_never_ends_inside_a_character() -> None:
    parts = tokens("a", "", "", "苹", "b")
    assert texts(parts, Action.MINI_STEP, 2) == ["a苹", "b"]


def test_the_end_of_thought_may_be_spread_over_tokens() -> None:
    parts = tokens("a", ".</", "Thou", "ght>", "\n4")
    assert texts(parts, Action.STEP) == ["a", ".</Thought>\n4"]


def test_the_end_of_thought_may_begin_in_the_node_before() -> None:
    """Where a fork or the budget of tokens parted it."""
    parts = tokens("Thou", "ght>", "\n4")
    for before, wanted in (("it is 5.</", [Action.ANSWER]), ("it is 5.<", [Action.STEP])):
        found = cut(parts, Action.STEP, 64, MARCO_O1, thought_open=True, before=before)
        assert [action for action, _ in found] == wanted


def test_after_the_thought_all_is_answer() -> None:
    assert texts(tokens("a\n", "b\n"), Action.STEP, open_=False) == ["a\nb\n"]


@given(
    st.lists(st.sampled_from(["a", "\n", "b\n\n", "", "</Thought>", "</Th", "ought>"])),
    st.sampled_from([Action.STEP, Action.MINI_STEP, Action.WHOLE]),
    st.integers(1, 5),
    st.booleans(),
)
def test_cutting_loses_no_token(
    words: list[str], action: str, size: int, thought_open: bool
) -> None:
    parts = tokens(*words)
    cuts = cut(parts, action, size, MARCO_O1, thought_open=thought_open)
    assert [t for _, part in cuts for t in part] == parts
    assert all(part for _, part in cuts)


@given(
    st.lists(st.sampled_from(["a", ". ", "b.\n", "", "苹", "。", "The answer is", " 3", "1. "])),
    st.sampled_from([Action.STEP, Action.SENTENCE, Action.MINI_STEP, Action.WHOLE]),
    st.booleans(),
    st.booleans(),
)
def test_without_tags_no_token_is_lost_and_a_turn_that_ended_has_an_answer(
    words: list[str], action: str, ended: bool, closing: bool
) -> None:
    turn, parts = profiles.load(profiles.NEUTRAL).turn("en"), tokens(*words)
    cuts = cut(parts, action, 3, turn, thought_open=True, ended=ended, closing=closing)
    assert [t for _, part in cuts for t in part] == parts
    assert all(part for _, part in cuts)
    if words and (ended or "The answer is" in words) and not closing:
        assert [name for name, _ in cuts].index(Action.ANSWER) == len(cuts) - 1


def test_of_a_long_line_no_more_is_read_than_can_count() -> None:
    """Each fork asks for the line from there on: thousands of a thought of one line."""
    line = iter([(token, 0.75) for token in tokens("a") * 10_000])
    assert unsure(line) == 1.0
    assert len(list(line)) > 9_000
    assert unsure([(token, 0.5) for token in tokens("a", "b\n", "c")]) == 0.75
    assert unsure([]) == 0.0
