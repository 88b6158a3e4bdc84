"""The problems of the loop that learns, and what it reports."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from marco_search import settings
from marco_search.evaluation.data_sets import from_row
from marco_search.evaluation.traces import Trace, TracedRollout
from ops.finetune.self_improve import ARMS, LANGUAGES, Loop, table, training_problems
from ops.pocket.samples import is_held_out


def test_training_never_meets_held_out_questions() -> None:
    learned = {p.question for p in training_problems("en", 300, "a")}
    assert len(learned) == 300
    assert not any(is_held_out(question) for question in learned)


def test_the_report_compares_the_same_problems_with_before_and_the_controls(tmp_path: Path) -> None:
    """Before: a third right greedily; after: all; the controls: none."""
    rows = [{"question": f"What is {i} + 1?", "answer": i + 1} for i in range(30)]
    problems = {language: [from_row(row, "") for row in rows] for language in LANGUAGES}
    loop = Loop(tmp_path, "s", settings.load(), problems)
    rounds = {name: range(arm.rounds + 1) for name, arm in ARMS.items()}
    for name, numbers in rounds.items():
        for number in numbers:
            for language in LANGUAGES:
                file = loop.traces(name, number, language)
                file.parent.mkdir(exist_ok=True)
                lines = []
                for i, problem in enumerate(problems[language]):
                    right = name == "search" and (number > 0 or i % 3 == 0)
                    lines.append(_trace(problem.key, problem.expected[0] if right else "0"))
                if name == "search" or number:
                    file.write_text("".join(lines))
    report = json.loads(json.dumps(loop.to_json()))
    assert len(table(report).splitlines()) == 2 + 2 * 3
    found = report["rounds"]["1"]
    assert found["pooled"]["n"] == 60
    assert (found["en"]["greedy_before"], found["en"]["greedy_after"]) == (0.3333, 1.0)
    assert 0 < found["en"]["low"] < found["en"]["difference"] < found["en"]["high"]
    assert found["zh"]["controls"]["vote"]["gain_over_it"]["difference"] == 1.0
    assert found["zh"]["search_after"] == 1.0
    assert all(file.exists() for file in loop.plot(tmp_path / "plot"))


def _trace(key: str, answer: str) -> str:
    made = TracedRollout(
        answer=answer, round=1, start=0, path=(0, 1), generated=9, prompt=9, cached=0,
        confidence=0.9, path_confidence=0.9,
    )  # fmt: skip
    trace = Trace(
        key=key, run="r", choice="vote", sharpness=1.0, stop_reason="lead", seconds=1.0,
        answers={answer: answer}, rollouts=(made, made),
    )  # fmt: skip
    return json.dumps(asdict(trace)) + "\n"
