"""Thought and Output parts of a turn, whole, cut off, or without some of the tags."""

from __future__ import annotations

import pytest

from marco_search.kinds import KINDS
from marco_search.search.branches import MARCO_O1

KIND = KINDS["reasoning"]
TURN = "<Thought>\n1+1=2\n</Thought>\n<Output>\nThe answer is 2.\n</Output>"


def test_a_whole_turn() -> None:
    assert KIND.thought(TURN) == "1+1=2"
    assert KIND.output(TURN) == "The answer is 2."
    assert KIND.answer_key(TURN) == "2"


def test_the_opening_tag_may_be_part_of_the_prompt() -> None:
    rest = TURN.removeprefix(MARCO_O1.opening)
    assert KIND.thought(rest) == KIND.thought(TURN)
    assert KIND.answer(rest) == KIND.answer(TURN)


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("<Thought>\nx\n</Thought>\n<Output>\n2", "2"),  # output never closed
        ("<Thought>\nx\n</Thought>\n2", "2"),  # no output tags
        ("<Thought>\nx\n</Thought>\n2\n</Output>", "2"),  # opening tag forgotten
        ("<Thought>\nIt is 2.", "It is 2."),  # no further tags at all
        ("It is 2.", "It is 2."),
        ("<Thought>\nx\n</Thought>\n<Output>\n2<|im_end|>\n", "2"),
        ("<Thought>\nx<Output>\n2\n</Output>", "2"),  # thought never closed
    ],
)
def test_a_finished_turn_may_lack_tags(text: str, output: str) -> None:
    assert KIND.output(text) == output
    assert KIND.answer_key(text) == "2"


@pytest.mark.parametrize(
    "text",
    ["<Thought>\nx\n</Thought>\n<Output>\n\n</Output>", "<Thought>\nx\n</Thought>\n", " ", ""],
)
def test_an_empty_output_is_none(text: str) -> None:
    assert KIND.output(text) is None
    assert KIND.answer(text) is None


def test_after_a_reflection_the_later_output_counts() -> None:
    text = f"{TURN}\n{MARCO_O1.reflection}\n1+2=3\n</Thought>\n<Output>\n3\n</Output>"
    assert KIND.answer_key(text) == "3"
    text = f"<Thought>\na\n{MARCO_O1.reflection}\nb\n</Thought>\n<Output>\n3\n</Output>"
    assert KIND.thought(text) == f"a\n{MARCO_O1.reflection}\nb"


def test_tags_that_a_thought_only_speaks_of() -> None:
    text = "<Thought>\nI put it in <Output> tags.\n</Thought>\n<Output>\n7\n</Output>"
    assert KIND.output(text) == "7"
    assert KIND.thought(text) == "I put it in <Output> tags."
    assert KIND.output("<Thought>\nmind <Output>\n</Thought>\n8") == "8"


def test_thought_of_a_cut_off_turn() -> None:
    assert KIND.thought("<Thought>\n1+1") == "1+1"
    assert KIND.thought("<Thought>\n1+1<Output>2") == "1+1"
