"""`marco eval` as installed: files it can't read, and going on from earlier traces."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.pipes import piped

MARCO = str(Path(sys.executable).with_name("marco"))


def marco(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [MARCO, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, close_fds=False)


def test_a_file_in_latin_1_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes("How many?\t1\nWie groß?\t3\n".encode("latin-1"))
    done = marco("eval", tmp_path / "a.tsv", "--local")
    assert done.returncode == 2
    assert f"{tmp_path / 'a.tsv'}, line 2: not valid UTF-8" in done.stderr


def test_sets_and_traces_may_come_out_of_pipes(tmp_path: Path) -> None:
    rows = [{"question": f"Tom has {n} apples and gets 2. How many?"} for n in (3, 4)]
    traces = tmp_path / "traces.jsonl"
    words: list[str | Path] = ["--strategy", "cot", "--local", "--trees"]
    with piped(rows) as pipe:
        assert marco("eval", pipe, *words, "--out", traces).returncode == 0
    labelled = [row | {"answer": 5} for row in rows]
    kept = [json.loads(line) for line in traces.read_text().splitlines()]
    with piped(labelled) as labels, piped(kept) as pipe:
        replayed = marco("replay", pipe, "--set", labels, "--json")
        assert replayed.returncode == 0, replayed.stderr
    with piped(labelled[:1]) as labels, piped([*kept, *kept]) as pipe:  # as after failures
        again = marco("replay", pipe, "--set", labels)
        assert again.stdout.startswith("1 problem\n")
    with piped(rows) as unlabelled, piped(kept) as pipe:
        assert marco("replay", pipe, "--set", unlabelled).returncode == 2
    with piped(rows) as pipe:
        few = marco("calibrate", pipe)
        assert few.returncode == 2 and "too few" in few.stderr
    with piped(kept) as pipe:
        refused = marco("eval", "heldout_en", *words, "--out", pipe)
        assert refused.returncode == 2 and "kept in a file" in refused.stderr


def test_a_second_run_reports_what_it_resumes(tmp_path: Path) -> None:
    questions = [f"Tom has {n} apples and gets 2. How many?" for n in (3, 4)]
    rows = [{"question": q, "answer": n} for n, q in enumerate(questions, start=5)]
    file, out = tmp_path / "set.jsonl", tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words: list[str | Path] = ["eval", file, "--local", "--out", out, "--strategy", "cot", "--json"]
    first = marco(*words, "--limit", "1")
    assert first.returncode == 0 and "earlier run" not in first.stderr
    second = marco(*words)
    assert second.returncode == 0 and "1 of 2 problems are in" in second.stderr
    report = json.loads(second.stdout)
    assert (report["resumed"], report["results"]["cot"]["failed"]) == (1, 0)
    samples, written = tmp_path / "samples.jsonl", tmp_path / "report.md"
    beside = tmp_path / "report.json"  # naming it writes both, too
    compared = marco(*words, "--samples", samples, "--report", beside, "--against", out)
    assert json.loads(beside.read_text())["results"]["cot"]["n"] == 2
    assert json.loads(compared.stdout)["against"]["accuracy"]["difference"] == 0
    for named in ("model: pocket ", "profile: pocket ", "seed: 0", "strategy: cot", "UTC"):
        assert named in written.read_text()
    answered = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [(line["question"], line["expected"]) for line in answered] == [
        (question, [str(n)]) for n, question in enumerate(questions, start=5)
    ]
    for line, trace in zip(answered, out.read_bytes().splitlines(), strict=True):
        assert line["right"] in (True, False)
        assert line["trace"] == hashlib.sha256(trace).hexdigest()
        assert line["tokens"] > 0 and 0 <= line["confidence"] <= 1
    # Problems with failed rollouts are searched again.
    lines = out.read_text().replace('"failed": false', '"failed": true')
    out.write_text(lines)
    third = marco(*words)
    assert third.returncode == 0 and "earlier run" not in third.stderr


def test_a_pipe_gets_the_lines_and_of_a_link_the_target_is_replaced(tmp_path: Path) -> None:
    file, target, link, pipe = (tmp_path / name for name in ("set.jsonl", "target", "link", "pipe"))
    file.write_text(json.dumps({"question": "Tom has 3 apples and gets 2. How many?"}) + "\n")
    words: list[str | Path] = ["eval", file, "--local", "--strategy", "cot", "--samples"]
    words[2:2] = ["--out", tmp_path / "traces.jsonl"]
    target.write_text("old")
    link.symlink_to(target)
    assert marco(*words, link).returncode == 0
    assert link.is_symlink() and json.loads(target.read_text())["right"] is None
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    assert marco(*words, pipe).returncode == 0
    assert os.read(reading, 2**16) == target.read_bytes() and pipe.is_fifo()
    os.close(reading)
