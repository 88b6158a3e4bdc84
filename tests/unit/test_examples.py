"""The shipped examples are jobs that would be accepted, and of every kind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from marco_search.cli.job_input import read_lines

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("name", ["demo.jsonl", "batch.jsonl"])
def test_example_files_hold_valid_jobs_of_every_kind(name: str) -> None:
    jobs = read_lines(str(EXAMPLES / name)).values()
    assert {job.kind for job in jobs} == {"reasoning", "translation", "open_ended"}


def test_the_demo_asks_in_english_and_chinese_and_knows_the_answers() -> None:
    jobs = read_lines(str(EXAMPLES / "demo.jsonl")).values()
    questions = [job for job in jobs if job.kind == "reasoning"]
    chinese = [job for job in questions if any("一" <= c <= "鿿" for c in job.subject)]
    assert len(chinese) >= 6
    assert len(questions) - len(chinese) >= 6
    assert sum(job.kind == "translation" for job in jobs) >= 3
    assert all(job.expected for job in jobs if job.kind != "open_ended")


@pytest.mark.parametrize(("answer", "said"), [("900", "accept"), ("901", "reject"), ("many", "")])
def test_the_example_verifier(answer: str, said: str) -> None:
    given = {"answer": answer, "metadata": {"equation": "x/6=3*50"}}
    command = [sys.executable, str(EXAMPLES / "check_equation.py")]
    done = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode == 0) == (said, bool(said))
