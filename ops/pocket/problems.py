"""Word problems about a count that changes, in English and Chinese.

A problem is a start value and 2 to 6 events, each one operation on the running count. Values stay
between 1 and 999. The wording of an event in the question is reused, word for word, by the step
of the solution that computes it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]
Operator = Literal["+", "-", "*", "/"]

MAX_VALUE = 999
# Problems that start in this range are never trained on; they form the range held-out sets.
HELD_OUT_STARTS = range(70, 80)
OPERATION_WEIGHTS = {2: 12, 3: 26, 4: 28, 5: 22, 6: 12}


@dataclass(frozen=True)
class Event:
    """One operation on the count, and the clause that tells it."""

    operator: Operator
    operand: int
    clause: str


@dataclass(frozen=True)
class Problem:
    """A question with the operations that solve it. `unit` follows the number in the answer."""

    language: Language
    question: str
    start: int
    events: tuple[Event, ...]
    unit: str

    @property
    def answer(self) -> int:
        return final_value(self.start, self.events)


@dataclass(frozen=True)
class Thing:
    """What is counted. `measure` is the Chinese measure word, empty in English."""

    name: str
    measure: str = ""


NAMES: dict[Language, tuple[str, ...]] = {
    "en": ("Tom", "Anna", "Ben", "Lily", "Sam", "Mia", "Leo", "Kate"),
    "zh": ("小明", "小红", "小丽", "小华", "小军", "小美"),
}
THINGS: dict[Language, tuple[Thing, ...]] = {
    "en": tuple(
        Thing(word)
        for word in ("apples", "books", "cards", "cookies", "eggs", "pencils", "shells", "stamps")
    ),
    "zh": (
        Thing("苹果", "个"),
        Thing("书", "本"),
        Thing("铅笔", "支"),
        Thing("邮票", "张"),
        Thing("鸡蛋", "个"),
        Thing("饼干", "块"),
        Thing("卡片", "张"),
        Thing("贝壳", "个"),
    ),
}
# {n} owner, {f} friend, {i} thing, {m} measure word, {v} operand, {s} start value.
CLAUSES: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "box": ("{n} has {v} boxes with {s} {i} each",),
        "+": (
            "{f} gives {n} {v} more {i}",
            "{n} buys {v} more {i}",
            "{n} finds {v} more {i}",
        ),
        "-": ("{n} gives {v} {i} to {f}", "{n} sells {v} {i}", "{n} loses {v} {i}"),
        "*": (
            "{n} trades them for {v} times as many {i}",
            "the number of {i} grows to {v} times",
        ),
        "/": (
            "{n} packs the {i} into {v} equal bags and keeps one bag",
            "{n} shares the {i} equally among {v} people and keeps one part",
        ),
        "price": ("each of the {i} sells for {v} dollars",),
    },
    "zh": {
        "box": ("{n}有{v}盒{i}，每盒{s}{m}",),
        "+": ("{f}又给{n}{v}{m}{i}", "{n}又买了{v}{m}{i}", "{n}又找到{v}{m}{i}"),
        "-": ("{n}给{f}{v}{m}{i}", "{n}卖掉{v}{m}{i}", "{n}丢了{v}{m}{i}"),
        "*": ("{n}把它们换成{v}倍的{i}", "{i}的数量变成原来的{v}倍"),
        "/": ("{n}把{i}平均装进{v}个袋子，只留一袋", "{n}把{i}平均分给{v}个人，自己留一份"),
        "price": ("每{m}{i}卖{v}元",),
    },
}
OPENING: dict[Language, str] = {"en": "{n} has {s} {i}", "zh": "{n}有{s}{m}{i}"}
AGE: dict[Language, str] = {"en": "{f} is {v} years old", "zh": "{f}今年{v}岁"}
ASK_COUNT: dict[Language, str] = {
    "en": "How many {i} does {n} have now?",
    "zh": "{n}现在有多少{m}{i}？",
}
ASK_MONEY: dict[Language, str] = {
    "en": "How much money is that in total?",
    "zh": "一共能卖多少元？",
}


def apply(value: int, operator: Operator, operand: int) -> int:
    """The count after one operation. Division must be exact: ValueError if it is not."""
    if operator == "+":
        return value + operand
    if operator == "-":
        return value - operand
    if operator == "*":
        return value * operand
    if value % operand:
        raise ValueError(f"{value} is not divisible by {operand}")
    return value // operand


def final_value(start: int, events: tuple[Event, ...]) -> int:
    """The count after all events."""
    value = start
    for event in events:
        value = apply(value, event.operator, event.operand)
    return value


def draw_problem(rng: random.Random, language: Language, starts: range | None = None) -> Problem:
    """A random problem. `starts` limits the start value; by default any from 5 to 99."""
    count = rng.choices(tuple(OPERATION_WEIGHTS), tuple(OPERATION_WEIGHTS.values()))[0]
    low, high = (starts.start, starts.stop - 1) if starts else (5, 99)
    start = rng.randint(low, high)
    kinds: list[tuple[str, Operator, int]] = []
    value = start
    if rng.random() < 0.35:
        kinds.append(("box", "*", _multiplier(rng, value, two_digits=0.55)))
        value *= kinds[0][2]
    while len(kinds) < count:
        last = len(kinds) == count - 1
        if last and rng.random() < 0.2 and 2 <= value <= MAX_VALUE // 2:
            kinds.append(("price", "*", _multiplier(rng, value, two_digits=0.6)))
            continue
        drawn = _draw_operation(rng, value)
        if drawn is not None:
            kinds.append((drawn[0], *drawn))
            value = apply(value, *drawn)
    return _word(rng, language, start, kinds)


def draw_arithmetic(rng: random.Random, language: Language) -> Problem:
    """A bare calculation with the same kinds of numbers, as one event without a clause."""
    while True:
        value = rng.randint(5, 99) if rng.random() < 0.5 else rng.randint(100, MAX_VALUE)
        if value in HELD_OUT_STARTS:
            continue
        if value < 90 and rng.random() < 0.35:
            operator: Operator = "*"
            operand = _multiplier(rng, value, two_digits=0.6)
        else:
            drawn = _draw_operation(rng, value)
            if drawn is None:
                continue
            operator, operand = drawn
        sum_text = f"{value}{operator}{operand}"
        question = f"Compute {sum_text}." if language == "en" else f"计算{sum_text}。"
        return Problem(language, question, value, (Event(operator, operand, ""),), "")


def _multiplier(rng: random.Random, value: int, two_digits: float) -> int:
    """A factor that keeps the product within bounds; two digits with the given chance."""
    limit = MAX_VALUE // value
    if limit >= 11 and rng.random() < two_digits:
        return rng.randint(11, min(limit, 49))
    return rng.randint(2, max(2, min(9, limit)))


def _draw_operation(rng: random.Random, value: int) -> tuple[Operator, int] | None:
    """One operation that fits the count, or None when the drawn kind does not fit."""
    operator = rng.choice("+++---**//")
    if operator == "+" and value <= MAX_VALUE - 20:
        large = 100 <= value <= MAX_VALUE - 100 and rng.random() < 0.25
        return "+", rng.randint(100 if large else 3, min(299 if large else 99, MAX_VALUE - value))
    if operator == "-" and value >= 8:
        large = value >= 150 and rng.random() < 0.25
        return "-", rng.randint(100 if large else 2, min(299 if large else 99, value - 2))
    if operator == "*" and 2 <= value <= MAX_VALUE // 2:
        return "*", rng.randint(2, min(9, MAX_VALUE // value))
    if operator == "/":
        divisors = [d for d in range(2, 10) if value % d == 0 and value // d > 1]
        if divisors:
            return "/", rng.choice(divisors)
    return None


def _word(
    rng: random.Random, language: Language, start: int, kinds: list[tuple[str, Operator, int]]
) -> Problem:
    owner, friend = rng.sample(NAMES[language], 2)
    thing = rng.choice(THINGS[language])
    words = {"n": owner, "f": friend, "i": thing.name, "m": thing.measure, "s": str(start)}
    events = tuple(
        Event(operator, operand, rng.choice(CLAUSES[language][kind]).format(v=operand, **words))
        for kind, operator, operand in kinds
    )
    clauses = [event.clause for event in events]
    if kinds[0][0] != "box":
        clauses.insert(0, OPENING[language].format(**words))
    if rng.random() < 0.15:
        age = AGE[language].format(v=rng.randint(5, 15), **words)
        clauses.insert(rng.randint(1, len(clauses)), age)
    money = kinds[-1][0] == "price"
    ask = (ASK_MONEY if money else ASK_COUNT)[language].format(**words)
    if language == "en":
        question = " ".join([f"{clause[0].upper()}{clause[1:]}." for clause in clauses] + [ask])
        unit = " dollars" if money else f" {thing.name}"
    else:
        question = "".join([f"{clause}。" for clause in clauses] + [ask])
        unit = "元" if money else f"{thing.measure}{thing.name}"
    return Problem(language, question, start, events, unit)
