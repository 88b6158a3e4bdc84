"""Commands that read say why nothing goes on and what they do not show."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from marco_search.cli.main import main
from producer import Producer

MARCO = Path(sys.prefix) / "bin" / "marco"
NO_WORKER = "no worker responds: run `marco worker`"
JOBS = [
    {"kind": "open_ended", "prompt": "Go on."},
    {"kind": "open_ended", "prompt": "Go on.", "tenant": "research"},
]


@dataclass(frozen=True)
class Said:
    """What a command printed."""

    stdout: str
    stderr: str


Marco = Callable[..., Said]


@pytest.fixture
def marco(
    command_line: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Marco:
    """Runs a command in this process, with both jobs in `jobs.jsonl`."""
    monkeypatch.chdir(tmp_path)
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, JOBS)))

    def run(*words: str, code: int = 0) -> Said:
        ended = main(words)
        said = Said(*capsys.readouterr())
        assert ended == code, said
        return said

    return run


@contextmanager
def started(*words: str) -> Iterator[IO[str]]:
    """The standard error of a command that waits, which is killed in the end."""
    process = subprocess.Popen(
        [MARCO, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        yield process.stderr
        process.kill()


def line(err: IO[str], word: str) -> str:
    """The first line with this word."""
    return next(line for line in err if word in line)


def test_it_is_said_that_no_worker_answers(marco: Marco) -> None:
    marco("submit", "jobs.jsonl")
    with started("watch") as watch, started("wait", "--json") as wait:
        assert line(watch, "worker") == f"marco: {NO_WORKER}\n"
        assert json.loads(line(wait, "worker")) == {"notice": NO_WORKER}
    assert NO_WORKER in marco("status").stderr
    assert json.loads(marco("status", "--json").stdout)["notices"] == {"no_worker": NO_WORKER}


def test_it_is_said_that_jobs_are_paused(marco: Marco) -> None:
    marco("submit", "jobs.jsonl")
    marco("pause", "--all")
    done = marco("status", "--all-tenants")
    assert "2 jobs: 2 paused" in done.stdout
    assert "marco resume" in done.stderr
    assert NO_WORKER not in done.stderr
    with started("watch") as watch, started("wait") as wait:
        assert "paused: 1 queued" in line(watch, "resume")
        assert "paused: 1 queued" in line(wait, "resume")


def test_python_is_told_once_by_its_log(
    marco: Marco, database_url: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Producer(database_url, redis_url) as producer:
        job = producer.submit(JOBS[0])
        with caplog.at_level(logging.WARNING):
            for _ in producer.follow(job):
                if caplog.messages:
                    producer.cancel(job)
        assert caplog.messages == [NO_WORKER]
        assert producer.standstill() == {}


def test_jobs_of_other_tenants_are_said(marco: Marco) -> None:
    mine, theirs = marco("submit", "jobs.jsonl").stdout.split()
    said = "1 job of tenant research is not shown: --tenant research"
    assert said in marco("status").stderr
    assert said in marco("watch", "--timeout", "0", code=6).stderr
    assert "is of tenant 'research'" in marco("status", theirs, code=3).stderr
    for whose, ids in (("--tenant=research", [theirs]), ("--all-tenants", [mine, theirs])):
        listed = json.loads(marco("status", whose, "--json").stdout)
        assert [job["job_id"] for job in listed["jobs"]] == ids
        assert listed["other_tenants"] == ({} if len(ids) == 2 else {"default": 1})
    marco("cancel", theirs, "--tenant", "research")
    assert "1 job of tenant research" in marco("results").stderr
    assert theirs in marco("results", "--tenant", "research", "--jsonl").stdout
    assert main(["status", "--tenant", "x", "--all-tenants"]) == 2
    assert main(["status", "--tenant", ""]) == 2
