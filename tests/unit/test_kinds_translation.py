"""Translation jobs: the exact prompt, and which translations are the same."""

from __future__ import annotations

import pytest

from marco_search.kinds import TranslationJob, kind_of
from marco_search.search.branches import Message


@pytest.mark.parametrize(
    ("job", "prompt"),
    [
        # The shipped model is trained on these two, to the letter.
        (
            TranslationJob(text="这个鞋拥有踩屎感"),
            "Translate this colloquial Chinese text into natural English: 这个鞋拥有踩屎感",
        ),
        (
            TranslationJob(text="你好", style="plain"),
            "Translate this Chinese text into English: 你好",
        ),
        (
            TranslationJob(text="Hallo", source="German", target="fr", style="plain"),
            "Translate this German text into French: Hallo",
        ),
        (
            TranslationJob(text="hi", source="en", target="zh-TW"),
            "Translate this colloquial English text into natural Traditional Chinese: hi",
        ),
    ],
)
def test_prompt(job: TranslationJob, prompt: str) -> None:
    assert kind_of(job).messages(job) == [Message(role="user", content=prompt)]


def test_expected_never_reaches_the_prompt() -> None:
    job = TranslationJob(text="你好", expected="Hello")
    assert "Hello" not in repr(kind_of(job).messages(job))


def test_case_quotes_and_punctuation_make_no_other_translation() -> None:
    kind = kind_of(TranslationJob(text="a"))
    variants = [
        "It is so beautiful",
        "It is so  beautiful.",
        "“It is so beautiful!”",
        "IT IS SO BEAUTIFUL",
    ]
    assert len({kind.read(v).key for v in variants}) == 1  # type: ignore[union-attr]
    assert kind.equal(variants[0], variants[2])
    assert not kind.equal("It is so beautiful", "It is beautiful")


def test_display_keeps_the_original() -> None:
    kind = kind_of(TranslationJob(text="a"))
    text = "<Thought>\nx\n</Thought>\n<Output>\n“What a Rip-off!”\n</Output>"
    assert kind.answer(text).display == "“What a Rip-off!”"  # type: ignore[union-attr]
    assert kind.answer_key(text) == "what a rip-off"


def test_numbers_in_a_translation_are_part_of_it() -> None:
    kind = kind_of(TranslationJob(text="a"))
    assert kind.answer_key("</Thought>\n<Output>The answer is 5.</Output>") == "answer is 5"


def test_nothing_is_no_translation() -> None:
    assert kind_of(TranslationJob(text="a")).read("...") is None
