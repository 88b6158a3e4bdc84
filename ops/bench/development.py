"""The development split: word problems for choosing a search, never used for a report.

    python -m ops.bench.development FOLDER [COUNT]     writes development_en.jsonl and _zh.jsonl

Made by the generator of the held-out sets under another seed. Like those, the questions are
held out from training by their hash; any that a shipped held-out set has is left out, so
that the split shares no question with training or with any report.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from marco_search import pocket
from ops.pocket.problems import Language, Problem
from ops.pocket.samples import held_out_problems

SEEDS: dict[Language, int] = {"en": 71_001, "zh": 71_002}  # the shipped sets: ops/pocket/export.py
SPARE = 20
"""Drawn beyond the count, to make up for those left out."""


def development_problems(language: Language, count: int) -> list[Problem]:
    """The first `count` problems of the split; a larger count goes on from a smaller one."""
    shipped = {row["question"] for name in pocket.HELD_OUT_SETS for row in pocket.held_out(name)}
    drawn = held_out_problems(language, count + SPARE, SEEDS[language])
    fresh = [p for p in drawn if p.question not in shipped][:count]
    assert len(fresh) == count, "few of the drawn questions are in a shipped set"
    return fresh


def export(folder: Path, count: int = 300) -> list[Path]:
    """Write both languages as JSON Lines; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for language in SEEDS:
        rows = [
            {"question": p.question, "answer": p.answer}
            for p in development_problems(language, count)
        ]
        file = folder / f"development_{language}.jsonl"
        file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        files.append(file)
    return files


if __name__ == "__main__":
    print(*export(Path(sys.argv[1]), *map(int, sys.argv[2:])), sep="\n")
