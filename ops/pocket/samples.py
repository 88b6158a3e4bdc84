"""Draws training samples in the right mix and keeps the held-out ones out.

Sentences of the phrase book are colloquial Chinese and natural English, built from a subject, a
comment and an opener, so that held-out sentences are unseen combinations of known parts. All of
texts.json is written for this project.

For the development and the report of a search it draws word problems that nothing has used before:
held out from training, in no shipped set, and, unless the seed is that of the development split,
not in that either.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal, get_args

from marco_search import pocket
from marco_search.evaluation import data_sets
from ops.pocket.problems import (
    HELD_OUT_STARTS,
    TEXTS,
    WORDING,
    Language,
    Problem,
    Segment,
    capital,
    draw_arithmetic,
    draw_problem,
    solve,
    solve_with_reflection,
    turn,
)

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
# Chances of each kind; they add up to 1.
MIX = {"problem": 0.68, "reflection": 0.12, "arithmetic": 0.10, "translation": 0.06, "open": 0.04}
Kind = Literal["normal", "hard"]
DEVELOPMENT, DEVELOPMENT_PROBLEMS = "dev11", 400
"""Seed of the development split and its size, a language and kind."""
# Of the development split before it, and how many problems of it were looked at.
_FORMER: dict[Language, int] = {"en": 71_001, "zh": 71_002}
_FORMER_PROBLEMS = 600


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


@dataclass(frozen=True)
class Sample:
    """A user turn and the assistant's turn in segments. `start` is None without a problem."""

    kind: str
    user: str
    segments: tuple[Segment, ...]
    start: int | None = None

    @property
    def assistant(self) -> str:
        """The assistant's turn as one text."""
        return "".join(segment.text for segment in self.segments)


def is_held_out(question: str) -> bool:
    """One question in fifty, by its hash."""
    return zlib.crc32(question.encode()) % 50 == 0


def draw_sample(rng: random.Random) -> Sample:
    """One training sample; never a held-out question, start value or phrase."""
    while True:
        sample = _draw(rng)
        if not is_held_out(sample.user) and sample.start not in HELD_OUT_STARTS:
            return sample


def held_out_problems(
    language: Language,
    count: int,
    seed: int | str,
    *,
    in_range: bool = False,
    hard: bool = False,
    without: Container[str] = (),
) -> list[Problem]:
    """Distinct problems that training never has; a larger count goes on from a smaller one.

    Those whose hash is held out and whose start value training has; or, `in_range`, those that
    start in the range that training never starts in. Questions in `without` are left out.
    """
    rng, found = random.Random(seed), dict[str, Problem]()
    while len(found) < count:
        problem = draw_problem(rng, language, HELD_OUT_STARTS if in_range else None, hard=hard)
        hashed = is_held_out(problem.question) and problem.start not in HELD_OUT_STARTS
        if (in_range or hashed) and problem.question not in without:
            found.setdefault(problem.question, problem)
    return list(found.values())


def held_out_phrases() -> list[Phrase]:
    """The held-out sentences of the phrase book that are made of parts that training has."""
    known = {part for phrase in trained_phrases() for part in phrase.parts}
    return [p for p in phrases() if p.held_out and p.parts <= known]


@cache
def trained_phrases() -> tuple[Phrase, ...]:
    """The sentences of the phrase book that training may use."""
    return tuple(phrase for phrase in phrases() if not phrase.held_out)


def _draw(rng: random.Random) -> Sample:
    kind = rng.choices(tuple(MIX), tuple(MIX.values()))[0]
    language: Language = "en" if rng.random() < 0.5 else "zh"
    if kind == "translation":
        phrase = rng.choice(trained_phrases())
        prompt = rng.choices(PROMPTS, PROMPT_WEIGHTS)[0].format(text=phrase.chinese)
        which = rng.randrange(len(phrase.translations))
        text = turn(phrase.thoughts[which], phrase.translations[which])
        return Sample(kind, prompt, (Segment(text),))
    if kind == "open":
        prompt, thought, output = draw_open_ended(rng, language)
        return Sample(kind, prompt, (Segment(turn(thought, output)),))
    if kind == "arithmetic":
        problem = draw_arithmetic(rng, language)
        reflect = rng.random() < MIX["reflection"]
    else:
        problem = draw_problem(rng, language)
        reflect = kind == "reflection"
    segments = solve_with_reflection(problem, rng) if reflect else solve(problem, rng)
    return Sample(kind, problem.question, tuple(segments), problem.start)


def draw(seed: str, kind: Kind, language: Language, count: int) -> list[Problem]:
    """The first `count` problems of a split; a larger count goes on from a smaller one.

    Raises ValueError for more of the development split than other splits keep clear of.
    """
    if seed == DEVELOPMENT and count > DEVELOPMENT_PROBLEMS:
        raise ValueError(f"the development split has {DEVELOPMENT_PROBLEMS} problems")
    used = shipped() if seed == DEVELOPMENT else shipped() | used_in_development(language)
    name, hard = f"{seed}/{kind}/{language}", kind == "hard"
    return held_out_problems(language, count, name, hard=hard, without=used)


@cache
def shipped() -> frozenset[str]:
    """The questions of all shipped sets."""
    return frozenset(row["question"] for n in pocket.HELD_OUT_SETS for row in pocket.held_out(n))


@cache
def used_in_development(language: Language) -> frozenset[str]:
    """All questions that were looked at while the search was being designed."""
    problems = held_out_problems(language, _FORMER_PROBLEMS, _FORMER[language])
    for kind in get_args(Kind):
        problems += draw(DEVELOPMENT, kind, language, DEVELOPMENT_PROBLEMS)
    return frozenset(problem.question for problem in problems)


def as_problems(problems: Iterable[Problem]) -> list[data_sets.Problem]:
    """These problems as an evaluation takes them."""
    rows = ({"question": p.question, "answer": p.answer} for p in problems)
    return [data_sets.from_row(row, "a split") for row in rows]
