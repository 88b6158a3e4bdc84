"""The phrase book, and prompts with several good answers.

Sentences of the phrase book are colloquial Chinese and natural English, built from a subject, a
comment and an opener, so that held-out sentences are unseen combinations of known parts. All of
texts.json is written for this project.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from itertools import product

from ops.pocket.problems import TEXTS, Language

PROMPTS = (
    "Translate this colloquial Chinese text into natural English: {text}",
    "Translate this Chinese text into English: {text}",
    "把这句口语翻译成自然的英文：{text}",
)
PROMPT_WEIGHTS = (70, 15, 15)
GIFT_PROMPTS: dict[Language, str] = {
    "en": "Suggest a gift for a friend who likes {hobby}.",
    "zh": "给喜欢{hobby}的朋友推荐一份礼物。",
}
SUM_PROMPTS: dict[Language, str] = {
    "en": "Find two numbers whose sum is {total}.",
    "zh": "找出两个数，它们的和是{total}。",
}
HOBBIES: list[dict[Language, tuple[str, list[str]]]] = TEXTS["hobbies"]
"""By language: a hobby and gifts for it."""
_IRREGULAR = {
    "be": ("is", "are"),
    "have": ("has", "have"),
    "do": ("does", "do"),
    "go": ("goes", "go"),
    "will": ("will", "will"),
}


@dataclass(frozen=True)
class Phrase:
    """A sentence, its accepted translations and the thought that leads to each of them."""

    chinese: str
    translations: tuple[str, ...]
    thoughts: tuple[str, ...]
    held_out: bool


def phrases() -> list[Phrase]:
    """Every sentence of the book. About a third of the combinations is held out.

    Idioms have no parts to combine, so all of them are trained on.
    """
    book, parts = [], TEXTS["phrases"]
    for (subject, english, plural, groups), (comment, bases, group) in product(
        parts["subjects"], parts["comments"]
    ):
        if group not in groups:
            continue
        held_out = zlib.crc32(f"{subject}|{comment}".encode()) % 10 < 3
        meaning = f"Step 1: {subject} means {english}.\nStep 2: {comment} means "
        thoughts = tuple(f"{meaning}{base}." for base in bases)
        for opener, english_opener in parts["openers"]:
            sentences = (f"{english_opener}{english} {_inflect(b, plural)}." for b in bases)
            translations = tuple(s[0].upper() + s[1:] for s in sentences)
            book.append(Phrase(opener + subject + comment, translations, thoughts, held_out))
    for chinese, translations in parts["idioms"]:
        thoughts = (f"Step 1: {chinese} is a fixed saying.",) * len(translations)
        book.append(Phrase(chinese, tuple(translations), thoughts, held_out=False))
    return book


def _inflect(base: str, plural: bool) -> str:
    """Third person present: "be a safe buy" -> "is a safe buy" or "are a safe buy"."""
    verb, _, rest = base.partition(" ")
    singular_form, plural_form = _IRREGULAR.get(verb, (f"{verb}s", verb))
    return f"{plural_form if plural else singular_form} {rest}"


def gift_output(gift: str, language: Language) -> str:
    """A gift as the Output part names it."""
    return f"{gift[0].upper()}{gift[1:]}." if language == "en" else f"{gift}。"


def draw_open_ended(rng: random.Random, language: Language) -> tuple[str, str, str]:
    """(prompt, thought, output): a gift (60 %) or a pair of numbers."""
    return _gift(rng, language) if rng.random() < 0.6 else _pair(rng, language)


def _gift(rng: random.Random, language: Language) -> tuple[str, str, str]:
    hobby, gifts = rng.choice(HOBBIES)[language]
    gift = rng.choice(gifts)
    thought = (
        f"Step 1: The friend likes {hobby}.\nStep 2: For that, {gift} is useful."
        if language == "en"
        else f"第1步：朋友喜欢{hobby}。\n第2步：{gift}很合适。"
    )
    return GIFT_PROMPTS[language].format(hobby=hobby), thought, gift_output(gift, language)


def _pair(rng: random.Random, language: Language) -> tuple[str, str, str]:
    total = rng.randint(10, 199)
    first = rng.randint(1, total - 1)
    work, prompt = f"{total}-{first}={total - first}", SUM_PROMPTS[language].format(total=total)
    if language == "en":
        thought = f"Step 1: Take {first} as the first number.\nStep 2: The other number is {work}."
        return prompt, thought, f"{first} and {total - first}."
    thought = f"第1步：第一个数取{first}。\n第2步：另一个数是{work}。"
    return prompt, thought, f"{first}和{total - first}。"
