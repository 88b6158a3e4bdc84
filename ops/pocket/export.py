"""Writes the held-out sets and the demo questions: `python -m ops.pocket.export`.

Pure standard library; the same files come out each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from marco_search.pocket import MODEL_DIR, held_out
from ops.pocket.phrases import PROMPTS
from ops.pocket.problems import Language, Problem
from ops.pocket.samples import (
    held_out_phrases,
    held_out_problems,
    held_out_range_problems,
    is_held_out,
)

HELD_OUT_COUNT, RANGE_COUNT = 500, 250
SEEDS: dict[str, int] = {"en": 101, "zh": 102, "range_en": 103, "range_zh": 104}
# The demo takes questions in file order from here on, whether or not the model can answer them.
DEMO_OFFSET, DEMO_PROBLEMS = 300, 6
# Sentences come in fours that differ in the opener; these are three plain ones far apart.
DEMO_TRANSLATIONS = slice(8, 140, 48)
DEMO_FILE = MODEL_DIR / "demo.jsonl"
LANGUAGES: tuple[Language, Language] = ("en", "zh")


def export_held_out(folder: Path) -> None:
    """Writes the five held-out sets as JSON Lines."""
    for language in LANGUAGES:
        problems = held_out_problems(language, HELD_OUT_COUNT, SEEDS[language])
        _write(folder / f"heldout_{language}.jsonl", map(_problem_row, problems))
        ranged = held_out_range_problems(language, RANGE_COUNT, SEEDS[f"range_{language}"])
        _write(folder / f"heldout_range_{language}.jsonl", map(_problem_row, ranged))
    _write(folder / "heldout_translation.jsonl", _translation_rows())


def export_demo(path: Path) -> None:
    """Writes the demo's jobs: held-out problems, translations and one open-ended prompt."""
    rows: list[dict[str, Any]] = []
    end = DEMO_OFFSET + DEMO_PROBLEMS
    for language in LANGUAGES:
        for row in held_out(f"heldout_{language}")[DEMO_OFFSET:end]:
            expected = str(row["answer"])
            rows.append({"kind": "reasoning", "question": row["question"], "expected": expected})
    for row in held_out("heldout_translation")[DEMO_TRANSLATIONS]:
        job = {key: row[key] for key in ("text", "source", "target", "style")}
        rows.append({"kind": "translation", **job, "expected": row["expected"][0]})
    prompts = (f"Find two numbers whose sum is {total}." for total in range(50, 200))
    rows.append({"kind": "open_ended", "prompt": next(filter(is_held_out, prompts))})
    _write(path, rows)


def _problem_row(problem: Problem) -> dict[str, Any]:
    operations = [[event.operator, event.operand] for event in problem.events]
    return {
        "question": problem.question,
        "answer": problem.answer,
        "ops": operations,
        "start": problem.start,
    }


def _translation_rows() -> list[dict[str, Any]]:
    return [
        {
            "question": PROMPTS[0].format(text=phrase.chinese),
            "text": phrase.chinese,
            "expected": list(phrase.translations),
            "source": "zh",
            "target": "en",
            "style": "colloquial",
        }
        for phrase in held_out_phrases()
    ]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    export_held_out(MODEL_DIR)
    export_demo(DEMO_FILE)
