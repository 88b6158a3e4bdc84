"""`marco calibrate` as installed, on the pocket model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MARCO = str(Path(sys.executable).with_name("marco"))


def marco(home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MARCO, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"MARCO_HOME": str(home)},
    )


def test_a_model_is_measured_once_and_its_profile_used(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text(
        "".join(f"Tom has {n} apples and buys {n + 3} more. How many apples does Tom have now?\n"
                for n in range(3, 15))
    )  # fmt: skip
    words: list[str | Path] = ["calibrate", file, "--rollouts", "4", "--samples", "2"]
    first = marco(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    for part in ("Length.", "Sampling.", "Votes.", "Stop.", "Reflection.", "Labels. Too few"):
        assert part in first.stdout
    assert "--profile pocket-calibrated" in first.stdout
    traces = tmp_path / "evaluation" / "calibrate-questions.jsonl"
    searched = traces.read_text()

    second = marco(tmp_path, *words)
    assert second.returncode == 2 and "--force" in second.stderr
    again = marco(tmp_path, *words, "--force", "--json")
    data = json.loads(again.stdout)
    assert (data["profile"], data["findings"]["problems"]) == ("pocket-calibrated", 12)
    assert traces.read_text() == searched  # nothing is generated twice

    shown = marco(tmp_path, "profile", "show", "pocket-calibrated", "--json")
    assert json.loads(shown.stdout)["calibration"] == data["fields"]["calibration"]
    asked = "Tom has 3 apples and buys 5 more. How many apples does Tom have now?"
    solved = marco(tmp_path, "solve", asked, "--profile", "pocket-calibrated", "--json")
    assert solved.returncode == 0, solved.stderr
    assert json.loads(solved.stdout)["profile"].startswith("pocket-calibrated ")

    few = marco(tmp_path, "calibrate", file, "--limit", "3", "--out", tmp_path / "a.toml")
    assert few.returncode == 2 and "too few" in few.stderr
