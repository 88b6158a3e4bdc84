"""Writes the held-out sets and the demo questions: `python -m ops.pocket.export`.

The same files come out each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from marco_search.pocket import MODEL_DIR, held_out
from ops.pocket.problems import Language
from ops.pocket.samples import OPEN_ENDED, PROMPTS, held_out_phrases, held_out_problems, is_held_out

HELD_OUT_COUNT, RANGE_COUNT = 500, 250
SEEDS: dict[Language, tuple[int, int]] = {"en": (101, 103), "zh": (102, 104)}
"""Of the sets held out by hash, and by range."""
# The demo takes questions in file order from here on, whether or not the model can answer them.
DEMO_QUESTIONS = slice(300, 306)
# Sentences come in fours that differ in the opener; these are three plain ones far apart.
DEMO_TRANSLATIONS = slice(8, 140, 48)
DEMO_FILE = MODEL_DIR / "demo.jsonl"


def export_held_out(folder: Path) -> None:
    """Write the five held-out sets as JSON Lines."""
    for language, (seed, range_seed) in SEEDS.items():
        hashed = held_out_problems(language, HELD_OUT_COUNT, seed)
        ranged = held_out_problems(language, RANGE_COUNT, range_seed, in_range=True)
        for name, problems in {"heldout": hashed, "heldout_range": ranged}.items():
            rows = [
                {
                    "question": problem.question,
                    "answer": problem.answer,
                    "ops": [[event.operator, event.operand] for event in problem.events],
                    "start": problem.start,
                }
                for problem in problems
            ]
            _write(folder / f"{name}_{language}.jsonl", rows)
    translations = [
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
    _write(folder / "heldout_translation.jsonl", translations)


def export_demo(path: Path) -> None:
    """Write the demo's jobs: held-out problems, translations and one open-ended prompt."""
    rows: list[dict[str, Any]] = []
    for language in SEEDS:
        for row in held_out(f"heldout_{language}")[DEMO_QUESTIONS]:
            expected = str(row["answer"])
            rows.append({"kind": "reasoning", "question": row["question"], "expected": expected})
    for row in held_out("heldout_translation")[DEMO_TRANSLATIONS]:
        job = {key: row[key] for key in ("text", "source", "target", "style")}
        rows.append({"kind": "translation", **job, "expected": row["expected"][0]})
    prompts = (OPEN_ENDED["en"]["sum"].format(total=total) for total in range(50, 200))
    rows.append({"kind": "open_ended", "prompt": next(filter(is_held_out, prompts))})
    _write(path, rows)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    export_held_out(MODEL_DIR)
    export_demo(DEMO_FILE)
