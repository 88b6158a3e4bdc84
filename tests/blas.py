"""How many BLAS threads other processes decode with (see blas_watch/sitecustomize.py)."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def watched(folder: Path) -> dict[str, str]:
    """Variables of a process that loads numpy first, is given 4 threads, and is watched."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "4",
        "BLAS_WATCH": str(folder),
        "PYTHONPATH": f"{ROOT / 'tests' / 'blas_watch'}:{ROOT}",
    }


def seen(folder: Path) -> set[str]:
    """What the watched processes have decoded with: {"[1]"} if with one thread all the time."""
    return {file.read_text() for file in folder.iterdir()}
