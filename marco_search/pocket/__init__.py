"""The pocket model: a tiny language model shipped as data, and its held-out questions.

The folder is in Hugging Face format (Qwen2 architecture). README.md is the model card; it says how
the weights were made. This module only tells where the files are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODEL_DIR = Path(__file__).resolve().parent
HELD_OUT_SETS = (
    "heldout_en",
    "heldout_zh",
    "heldout_range_en",
    "heldout_range_zh",
    "heldout_translation",
)


def held_out(name: str) -> list[dict[str, Any]]:
    """One of `HELD_OUT_SETS`, as a list in file order.

    Word problems are {"question", "answer", "start", "ops"}, where ops are the [operator,
    operand] pairs that lead from the start value to the answer. Translations are {"question",
    "text", "expected", "source", "target", "style"}, where expected lists the accepted ones.
    Raises ValueError for an unknown name.
    """
    if name not in HELD_OUT_SETS:
        raise ValueError(f"no held-out set {name!r}; there are {', '.join(HELD_OUT_SETS)}")
    lines = (MODEL_DIR / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
