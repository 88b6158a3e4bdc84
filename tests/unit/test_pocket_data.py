"""The pocket model's training data: right answers, true equations, nothing held out leaks."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from marco_search.pocket import HELD_OUT_SETS, MODEL_DIR, held_out
from ops.pocket import export
from ops.pocket.problems import (
    HELD_OUT_STARTS,
    JUMP_CHANCE,
    MAX_VALUE,
    REFLECTION,
    Language,
    attempt,
    draw_arithmetic,
    draw_problem,
    pieces,
)
from ops.pocket.samples import HOBBIES, MIX, PROMPTS, Sample, draw_sample, is_held_out, phrases

LANGUAGES: tuple[Language, Language] = ("en", "zh")
EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
TURN = re.compile(r"<Thought>\n(.+)\n</Thought>\n<Output>\n(.+)\n</Output>", re.DOTALL)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    rng = random.Random(2024)
    return [draw_sample(rng) for _ in range(3000)]


def evaluate(start: int, operations: Sequence[tuple[str, int]]) -> int:
    """Left to right, by Python's own arithmetic on text."""
    expression = str(start)
    for operator, operand in operations:
        expression = f"({expression}{operator}{operand})"
    value = _arithmetic(expression)
    assert value == int(value)
    return int(value)


def _arithmetic(expression: str) -> float:
    assert re.fullmatch(r"[\d()+\-*/]+", expression)
    return float(eval(expression))  # noqa: S307 - digits and operators only, as asserted


def equations_hold(text: str) -> bool:
    found = EQUATION.findall(text)
    return bool(found) and all(_arithmetic(f"{a}{o}{b}") == int(c) for a, o, b, c in found)


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_equal_an_independent_evaluation(language: Language) -> None:
    rng = random.Random(7)
    for _ in range(500):
        problem = draw_problem(rng, language)
        operations = [(e.operator, e.operand) for e in problem.events]
        assert problem.answer == evaluate(problem.start, operations)
        assert 2 <= len(operations) <= 6
        assert 1 <= problem.answer <= MAX_VALUE
        assert str(problem.start) in problem.question
        assert all(str(operand) in problem.question for _, operand in operations)


@pytest.mark.parametrize("language", LANGUAGES)
def test_right_attempts_state_only_true_equations(language: Language) -> None:
    rng = random.Random(8)
    for _ in range(300):
        problem = draw_problem(rng, language)
        for chance in (0.0, JUMP_CHANCE, 1.0):
            text = attempt(problem, rng, chance)
            assert equations_hold(text)
            assert len(text.splitlines()) == len(problem.events)
            assert EQUATION.findall(text)[-1][3] == str(problem.answer)


def test_a_slip_makes_the_result_wrong_or_a_line_false_and_never_negative() -> None:
    rng = random.Random(9)
    for _ in range(500):
        problem = draw_problem(rng, "en")
        text = attempt(problem, rng, JUMP_CHANCE, slip=True)
        assert not equations_hold(text)
        results = [int(result) for *_, result in EQUATION.findall(text)]
        assert min(results) > 0
        assert "-" not in re.sub(r"\d-\d", "", text)


def test_pieces_work_out_two_digit_multipliers_digit_by_digit() -> None:
    assert pieces(23, "*", 14) == ["23*10=230", "23*4=92", "230+92=322"]
    assert pieces(74, "*", 4) == ["70*4=280", "4*4=16", "280+16=296"]
    assert pieces(45, "+", 18) == ["45+10=55", "55+8=63"]
    assert pieces(156, "/", 6) == ["120/6=20", "36/6=6", "20+6=26"]


def test_training_never_sees_what_is_held_out(samples: list[Sample]) -> None:
    held_questions = {row["question"] for name in HELD_OUT_SETS for row in held_out(name)}
    held_texts = {phrase.chinese for phrase in phrases() if phrase.held_out}
    for sample in samples:
        assert not is_held_out(sample.user)
        assert sample.user not in held_questions
        assert sample.start not in HELD_OUT_STARTS
        if sample.kind == "translation":
            assert re.split("[：:] ?", sample.user, maxsplit=1)[1] not in held_texts


def test_every_turn_has_the_exact_format(samples: list[Sample]) -> None:
    for sample in samples:
        match = TURN.fullmatch(sample.assistant)
        assert match, sample.assistant
        thought, output = match.groups()
        assert "\n" not in output and "<" not in thought + output
        chinese = re.match(r"第1步：", thought) is not None
        if sample.start is not None:
            pattern = r"答案是\d+\S*。" if chinese else r"The answer is \d+( \w+)?\."
            assert re.fullmatch(pattern, output), output
        for line in thought.splitlines():
            assert line == REFLECTION or re.match(r"第\d步：.+。$|Step \d: .+\.$", line), line


def test_reflection_is_inside_the_thought_and_slips_are_not_learned(samples: list[Sample]) -> None:
    reflected = [s for s in samples if REFLECTION in s.assistant]
    masked = [s for s in reflected if not all(segment.learned for segment in s.segments)]
    assert 0.6 < len(masked) / len(reflected) < 0.9
    for sample in reflected:
        opening, first, rest = sample.segments
        assert opening.text == "<Thought>\n"
        assert rest.text.startswith(f"\n{REFLECTION}\n")
        assert equations_hold(rest.text)
        assert equations_hold(first.text) == first.learned
    assert all(equations_hold(s.assistant) for s in samples if s.start and s not in reflected)


def test_the_mix_is_as_written(samples: list[Sample]) -> None:
    assert sum(MIX.values()) == pytest.approx(1)
    for kind, share in MIX.items():
        drawn = sum(sample.kind == kind for sample in samples) / len(samples)
        assert drawn == pytest.approx(share, abs=0.03), kind
    words = [s for s in samples if s.kind == "problem"]
    english = sum(s.user.isascii() for s in words) / len(words)
    assert english == pytest.approx(0.5, abs=0.05)


def test_the_phrase_book_is_large_enough_and_split() -> None:
    book = phrases()
    held = [phrase for phrase in book if phrase.held_out]
    assert len(book) >= 90 and len(held) >= 60
    assert 0.55 < 1 - len(held) / len(book) < 0.85
    assert sum(len(phrase.translations) > 1 for phrase in book) >= 20
    assert len({phrase.chinese for phrase in book}) == len(book)
    for phrase in held:  # unseen combinations of known parts
        assert all(line.startswith("Step ") for line in phrase.thoughts[0].splitlines())


def test_translation_prompts_are_the_products(samples: list[Sample]) -> None:
    for sample in samples:
        if sample.kind == "translation":
            assert any(sample.user.startswith(p.format(text="")) for p in PROMPTS)
    assert len(HOBBIES) >= 10
    assert all(len(gifts) >= 4 for hobby in HOBBIES for _, gifts in hobby.values())


def test_arithmetic_stays_in_bounds() -> None:
    rng = random.Random(3)
    for _ in range(500):
        problem = draw_arithmetic(rng, "zh")
        assert 1 <= problem.answer <= 999 and problem.start not in HELD_OUT_STARTS


@pytest.mark.parametrize("name", [name for name in HELD_OUT_SETS if name != "heldout_translation"])
def test_held_out_problems_are_right_and_held_out(name: str) -> None:
    rows = held_out(name)
    ranged = "range" in name
    assert len(rows) >= (250 if ranged else 500)
    assert len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        assert row["answer"] == evaluate(row["start"], row["ops"])
        assert (row["start"] in HELD_OUT_STARTS) == ranged
        assert ranged or is_held_out(row["question"])
        assert row["question"].isascii() == name.endswith("en")


def test_exports_are_what_the_exporter_writes(tmp_path: Path) -> None:
    export.export_held_out(tmp_path)
    for name in HELD_OUT_SETS:
        shipped = MODEL_DIR / f"{name}.jsonl"
        assert (tmp_path / shipped.name).read_bytes() == shipped.read_bytes()
    export.export_demo(tmp_path / "demo.jsonl")
    assert (tmp_path / "demo.jsonl").read_bytes() == export.DEMO_FILE.read_bytes()
    kinds = [json.loads(line)["kind"] for line in export.DEMO_FILE.read_text().splitlines()]
    assert kinds == ["reasoning"] * 12 + ["translation"] * 3 + ["open_ended"]


def test_unknown_held_out_set_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="heldout_en"):
        held_out("heldout_fr")
