"""Writes the reasoning for a word problem: steps, slips and reflection.

A step computes its operation either as a *jump* (`74*4=296`) or *in pieces*
(`74*4: 70*4=280, 4*4=16, 280+16=296`). Jumps are more frequent but harder for a small model, so
greedy decoding slips where a sampled, more confident path in pieces gets it right: that is the
head room a search can use.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ops.pocket.problems import WORDING, Operator, Problem, apply, capital

# Marco-o1, section 5: appended at the end of a thought to make the model check itself.
REFLECTION = "Wait! Maybe I made some mistakes! I need to rethink from scratch."
JUMP_CHANCE = 0.66
WRONG_ATTEMPT_CHANCE = 0.75
SLIPS = (1, -1, 2, -2, 9, -9, 10, -10, 20, -20, 100, -100)


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
