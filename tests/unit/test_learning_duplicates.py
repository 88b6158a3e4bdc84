"""What is dropped as a duplicate, or for standing in an evaluation set."""

from __future__ import annotations

import pytest

from marco_search import pocket
from marco_search.learning import duplicates
from marco_search.learning.filters import first_reason
from marco_search.learning.samples import Pair, Sample

QUESTION = "Tom has 90 cards and gives 49 of them to Lily, who had 12. How many has Lily now?"
THOUGHT = (
    "Lily had 12 cards at first. Tom gives her 49 more cards, so that she has 12 + 49 = 61 of "
    "them. What Tom has left does not matter here, for nobody asked about it. The answer is 61."
)


def sample(question, answer=THOUGHT):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Sample(messages, "filter", "en")


@pytest.mark.parametrize(
    ("other", "rule"),
    [
        (sample(QUESTION), "duplicate"),
        (
            sample(QUESTION.upper(), THOUGHT.replace("at first", "in the beginning")),
            "near_duplicate",
        ),
        (sample(QUESTION, "12 + 49 is 61, clearly."), None),  # another path to the same answer
        (sample(QUESTION.replace("90", "91")), None),  # another number is another question
        (sample("What is 2 + 3?", "2 + 3 = 5"), None),
    ],
)
def test_of_rows_that_are_alike_the_first_one_stays(other, rule):
    with duplicates.rules() as rules:
        assert first_reason(rules, sample(QUESTION)) is None
        found = first_reason(rules, other)
    assert (found and found[0]) == rule


def test_signs_without_a_word_are_not_all_alike():
    with duplicates.rules() as rules:
        for asked, said in (("🙂", "🙃"), ("🎉", "🎊"), ("? ?", "!")):
            assert first_reason(rules, sample(asked, said)) is None


def test_pairs_are_compared_with_both_of_their_sides():
    prompt, chosen = sample(QUESTION).messages[:1], sample(QUESTION).messages[1:]
    rejected = [{"role": "assistant", "content": "I have no idea how many cards that would be."}]
    with duplicates.rules() as rules:
        assert first_reason(rules, Pair(prompt, chosen, rejected, 0, "en")) is None
        assert first_reason(rules, Pair(prompt, chosen, chosen, 0, "en")) is None
        assert first_reason(rules, Pair(prompt, chosen, rejected, 0, "en"))


@pytest.mark.parametrize(
    ("word", "other", "rest"),
    [
        ("three", "five", QUESTION),
        ("三", "五", "小明有许多苹果，他给了小红一半，又买了一些，最后数了一遍。"),
    ],
)
def test_other_numbers_in_words_are_another_question_too(word, other, rest):
    with duplicates.rules() as rules:
        for number in (word, other):
            question = f"{number} {rest}"
            assert first_reason(rules, sample(question, THOUGHT + question)) is None


def test_a_held_out_problem_of_one_word_is_no_reason_to_drop_each_row_with_it():
    problems = duplicates.Problems([("problem 1", "Why?"), ("problem 2", "???")])
    assert problems.reason(sample("Why is the sky blue?", "???")) is None
    assert problems.reason(sample("why")) == "it is problem 1"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_held_out_problems_are_found_and_those_of_the_same_template_are_not(language):
    rules = duplicates.contamination([f"heldout_{language}"])
    problems = [row["question"] for row in pocket.held_out(f"heldout_{language}")]
    quoted = f"Please solve this step by step: {problems[7]} Thank you!"
    found = first_reason(rules, sample(quoted))
    assert found is not None
    assert f"problem 8 of heldout_{language}" in found[1]
    assert first_reason(rules, sample("Hello!", problems[3]))  # the answer quotes it
    others = [row["question"] for row in pocket.held_out(f"heldout_range_{language}")]
    assert not any(first_reason(rules, sample(question)) for question in others)
