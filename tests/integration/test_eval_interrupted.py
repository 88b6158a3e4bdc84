"""Ctrl-C ends `marco eval --local` at once and keeps the problems that are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from marco_search.evaluation.traces import read

MARCO = Path(sys.prefix) / "bin" / "marco"
LIMIT_S = 60


def test_ctrl_c_ends_an_evaluation_and_keeps_what_is_done(tmp_path: Path) -> None:
    traces = tmp_path / "traces.jsonl"
    words = ("--local", "--limit", "60", "--threads", "4", "--rollouts", "4", "--no-early-stop")
    process = subprocess.Popen(
        [MARCO, "eval", "heldout_en", *words, "--out", traces],
        cwd=tmp_path,
        env=os.environ | {"MARCO_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        deadline = time.monotonic() + LIMIT_S
        while not (traces.exists() and traces.stat().st_size) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert 0 < len(read(traces)) < 60
