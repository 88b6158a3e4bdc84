"""The phrase book, and prompts with several good answers.

Sentences of the phrase book are colloquial Chinese and natural English, built from a subject, a
comment and an opener, so that held-out sentences are unseen combinations of known parts. All of
texts.json is written for this project.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from ops.pocket.problems import TEXTS, WORDING, Language, capital

PROMPTS = (
    "Translate this colloquial Chinese text into natural English: {text}",
    "Translate this Chinese text into English: {text}",
    "把这句口语翻译成自然的英文：{text}",
)
PROMPT_WEIGHTS = (70, 15, 15)
OPEN_ENDED: dict[Language, dict[str, str]] = TEXTS["open_ended"]
"""By language: prompts "gift" ({hobby}) and "sum" ({total}), and what answers them."""
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

    @property
    def parts(self) -> set[str]:
        """The lines of its thoughts."""
        return {line for thought in self.thoughts for line in thought.splitlines()}


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
            translations = tuple(map(capital, sentences))
            book.append(Phrase(opener + subject + comment, translations, thoughts, held_out))
    for chinese, translations in parts["idioms"]:
        thoughts = (f"Step 1: {chinese} is a fixed saying.",) * len(translations)
        book.append(Phrase(chinese, tuple(translations), thoughts, held_out=False))
    return book


def _inflect(base: str, plural: bool) -> str:
    """Third person present: "be a safe buy" -> "is a safe buy" or "are a safe buy"."""
    verb, _, rest = base.partition(" ")
    return f"{_IRREGULAR.get(verb, (f'{verb}s', verb))[plural]} {rest}"


def gift_output(gift: str, language: Language) -> str:
    """A gift as the Output part names it."""
    return capital(gift) + str(WORDING[language]["stop"])


def acceptable_gifts() -> dict[str, Callable[[str], bool]]:
    """Each "gift" prompt to whether an output names a gift that training names for that hobby."""
    found: dict[str, Callable[[str], bool]] = {}
    for hobby in HOBBIES:
        for language, (name, gifts) in hobby.items():
            outputs = {gift_output(gift, language) for gift in gifts}
            found[OPEN_ENDED[language]["gift"].format(hobby=name)] = outputs.__contains__
    return found


def adds_up_to(total: int, output: str) -> bool:
    """Whether an output for a "sum" prompt is a pair of numbers with that sum."""
    numbers = [int(number) for number in re.findall(r"\d+", output)]
    return len(numbers) == 2 and sum(numbers) == total


def draw_open_ended(rng: random.Random, language: Language) -> tuple[str, str, str]:
    """(prompt, thought, output): a gift (60 %) or a pair of numbers."""
    words = OPEN_ENDED[language]
    if rng.random() < 0.6:
        hobby, gifts = rng.choice(HOBBIES)[language]
        gift = rng.choice(gifts)
        thought = words["gift_thought"].format(hobby=hobby, gift=gift)
        return words["gift"].format(hobby=hobby), thought, gift_output(gift, language)
    total = rng.randint(10, 199)
    first = rng.randint(1, total - 1)
    numbers = {"total": total, "first": first, "second": total - first}
    prompt, thought, output = (
        words[name].format(**numbers) for name in ("sum", "sum_thought", "sum_output")
    )
    return prompt, thought, output
