"""Word problems about a count that changes, in English and Chinese, and the reasoning for them.

A problem is a start value and 2 to 6 events, each one operation on the running count. Values stay
between 1 and 999. The wording of an event in the question is reused, word for word, by the step
of the solution that computes it.

A step computes its operation either as a *jump* (`74*4=296`) or *in pieces*
(`74*4: 70*4=280, 4*4=16, 280+16=296`). Jumps are more frequent but harder for a small model, so
greedy decoding slips where a sampled, more confident path in pieces gets it right: that is the
head room a search can use.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from operator import add, floordiv, mul, sub
from pathlib import Path
from typing import Any, Literal

from marco_search.search.branches import MARCO_O1

Language = Literal["en", "zh"]
Operator = Literal["+", "-", "*", "/"]

MAX_VALUE = 999
# Problems that start in this range are never trained on; they form the range held-out sets.
HELD_OUT_STARTS = range(70, 80)
_APPLY: dict[Operator, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul, "/": floordiv}
OPERATION_WEIGHTS = {2: 12, 3: 26, 4: 28, 5: 22, 6: 12}
HARD_WEIGHTS = {5: 1, 6: 1}
"""Of hard problems. Training never has a seventh step, so more would be impossible, not hard."""
TEXTS: dict[str, Any] = json.loads(Path(__file__).with_name("texts.json").read_text("utf-8"))
# {n} owner, {f} friend, {i} thing, {m} Chinese measure word, {v} operand, {s} start value.
WORDING: dict[Language, dict[str, Any]] = TEXTS["problems"]
REFLECTION = MARCO_O1.reflection
JUMP_CHANCE = 0.66
WRONG_ATTEMPT_CHANCE = 0.75
SLIPS = (1, -1, 2, -2, 9, -9, 10, -10, 20, -20, 100, -100)


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

    def counts(self, slip: tuple[int, int] = (-1, 0)) -> list[int]:
        """The count at the start and after each event. `slip`: an event's index and its error.

        Raises ValueError if a division is not exact after the slip.
        """
        values = [self.start]
        for i, event in enumerate(self.events):
            error = slip[1] if i == slip[0] else 0
            values.append(apply(values[-1], event.operator, event.operand) + error)
        return values

    @property
    def answer(self) -> int:
        """The count after all events."""
        return self.counts()[-1]

    @property
    def is_hard(self) -> bool:
        """Whether it has a two-digit factor, or five counts of a hundred or more."""
        factor = any(e.operator == "*" and e.operand >= 10 for e in self.events)
        return factor or sum(count >= 100 for count in self.counts()) >= 5


def apply(value: int, operator: Operator, operand: int) -> int:
    """The count after one operation. Division must be exact: ValueError if it is not."""
    if operator == "/" and value % operand:
        raise ValueError(f"{value} is not divisible by {operand}")
    return _APPLY[operator](value, operand)


def capital(text: str) -> str:
    """The text with its first letter in upper case, where its script has that."""
    return text[0].upper() + text[1:]


def draw_problem(
    rng: random.Random, language: Language, starts: range | None = None, *, hard: bool = False
) -> Problem:
    """A random problem. `starts` limits the start value; by default any from 5 to 99."""
    weights = HARD_WEIGHTS if hard else OPERATION_WEIGHTS
    while True:
        problem = _draw(rng, language, starts, weights)
        if not hard or problem.is_hard:
            return problem


def _draw(
    rng: random.Random, language: Language, starts: range | None, weights: dict[int, int]
) -> Problem:
    count = rng.choices(tuple(weights), tuple(weights.values()))[0]
    low, high = (starts.start, starts.stop - 1) if starts else (5, 99)
    start = value = rng.randint(low, high)
    kinds: list[tuple[str, Operator, int]] = []
    if rng.random() < 0.35:
        kinds.append(("box", "*", _multiplier(rng, value, two_digits=0.55)))
        value *= kinds[0][2]
    while len(kinds) < count:
        last = len(kinds) == count - 1
        if last and rng.random() < 0.2 and 2 <= value <= MAX_VALUE // 2:
            kinds.append(("price", "*", _multiplier(rng, value, two_digits=0.6)))
        elif drawn := _draw_operation(rng, value):
            kinds.append((drawn[0], *drawn))
            value = apply(value, *drawn)
    return _word(rng, language, start, kinds)


def draw_arithmetic(rng: random.Random, language: Language) -> Problem:
    """A bare calculation with the same kinds of numbers, as one event without a clause."""
    while True:
        value = rng.randint(5, 99) if rng.random() < 0.5 else rng.randint(100, MAX_VALUE)
        if value in HELD_OUT_STARTS:
            continue
        drawn: tuple[Operator, int] | None
        if value < 90 and rng.random() < 0.35:
            drawn = "*", _multiplier(rng, value, two_digits=0.6)
        else:
            drawn = _draw_operation(rng, value)
        if drawn:
            operator, operand = drawn
            question = WORDING[language]["compute"].format(work=f"{value}{operator}{operand}")
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
    wording = WORDING[language]
    owner, friend = rng.sample(wording["names"], 2)
    thing, measure = rng.choice(wording["things"])
    words = {"n": owner, "f": friend, "i": thing, "m": measure, "s": str(start)}
    events = tuple(
        Event(operator, operand, rng.choice(wording["clauses"][kind]).format(v=operand, **words))
        for kind, operator, operand in kinds
    )
    clauses = [event.clause for event in events]
    if kinds[0][0] != "box":
        clauses.insert(0, wording["opening"].format(**words))
    if rng.random() < 0.15:
        age = wording["age"].format(v=rng.randint(5, 15), **words)
        clauses.insert(rng.randint(1, len(clauses)), age)
    money = "_money" if kinds[-1][0] == "price" else ""
    ask = wording["ask_money" if money else "ask_count"].format(**words)
    sentences = [capital(clause) + wording["stop"] for clause in clauses]
    question = wording["between"].join([*sentences, ask])
    return Problem(language, question, start, events, wording[f"unit{money}"].format(**words))


@dataclass(frozen=True)
class Segment:
    """A piece of the assistant's turn; only `learned` pieces count in the loss."""

    text: str
    learned: bool = True


def pieces(value: int, operator: Operator, operand: int) -> list[str]:
    """The equations that compute `value operator operand` in easy parts, in order.

    Parts are round: `+` and `-` take the operand's digits, `*` the digits of one factor, `/` the
    digits of the quotient. One equation means that the operation has no easier parts.
    """
    if operator in "+-":
        equations = []
        for part in _round_parts(operand):
            equations.append(f"{value}{operator}{part}={apply(value, operator, part)}")
            value = apply(value, operator, part)
        return equations
    if operator == "/":
        parts = _round_parts(apply(value, operator, operand))
        products = [(f"{part * operand}/{operand}", part) for part in parts]
    elif operand >= 10:
        products = [(f"{value}*{part}", value * part) for part in _round_parts(operand)]
    else:
        products = [(f"{part}*{operand}", part * operand) for part in _round_parts(value)]
    (text, total), *others = products
    equations = [f"{text}={total}"]
    for text, value in others:
        equations += [f"{text}={value}", f"{total}+{value}={total + value}"]
        total += value
    return equations


def attempt(problem: Problem, rng: random.Random, jump_chance: float, slip: bool = False) -> str:
    """The steps of a solution, one a line, without a final newline.

    Args:
        problem: What to solve.
        rng: Source of the choice between jump and pieces, and of slips.
        jump_chance: Chance that a step is a jump; 0 gives a careful solution.
        slip: Make one step's result wrong. Later steps go on from the wrong count, which stays
            positive and divisible where it must be.
    """
    wrong = _choose_slip(problem, rng) if slip else (-1, 0)
    counts, wording, lines = problem.counts(wrong), WORDING[problem.language], []
    for i, event in enumerate(problem.events):
        parts = pieces(counts[i], event.operator, event.operand)
        work = f"{counts[i]}{event.operator}{event.operand}"
        if i == wrong[0] or len(parts) == 1 or rng.random() < jump_chance:
            work += f"={counts[i + 1]}"
        else:
            work += f": {', '.join(parts)}"
        reason = wording["reason"].format(clause=capital(event.clause)) if event.clause else ""
        lines.append(wording["step"].format(number=i + 1, work=reason + work))
    return "\n".join(lines)


def turn(thought: str, output: str) -> str:
    """A complete assistant turn, without the end-of-turn token."""
    return f"<Thought>\n{thought}\n</Thought>\n<Output>\n{output}\n</Output>"


def solve(problem: Problem, rng: random.Random) -> list[Segment]:
    """A right solution in the training mix of jumps and pieces."""
    thought = attempt(problem, rng, JUMP_CHANCE)
    return [Segment(turn(thought, _answer(problem)))]


def solve_with_reflection(problem: Problem, rng: random.Random) -> list[Segment]:
    """A first attempt, often wrong and then not learned, the phrase, and a redo in pieces."""
    wrong = rng.random() < WRONG_ATTEMPT_CHANCE
    first = attempt(problem, rng, JUMP_CHANCE, slip=wrong)
    redo = attempt(problem, rng, 0.0)
    head, rest = turn(f"{first}\n{REFLECTION}\n{redo}", _answer(problem)).split(first, 1)
    return [Segment(head), Segment(first, learned=not wrong), Segment(rest)]


def _answer(problem: Problem) -> str:
    answer = WORDING[problem.language]["answer"]
    return str(answer.format(value=problem.answer, unit=problem.unit))


def _choose_slip(problem: Problem, rng: random.Random) -> tuple[int, int]:
    """One event's index and its error, such that every later operation is still possible."""
    options = [(index, error) for index in range(len(problem.events)) for error in SLIPS]
    rng.shuffle(options)
    for option in options:
        try:
            if min(problem.counts(option)) >= 1:
                return option
        except ValueError:
            continue
    raise AssertionError("adding 1 at the last event is always possible")


def _round_parts(number: int) -> list[int]:
    """345 -> [300, 40, 5]."""
    text = str(number)
    return [int(d) * 10 ** (len(text) - 1 - i) for i, d in enumerate(text) if d != "0"]
