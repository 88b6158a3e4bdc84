"""How `marco worker` ends: what a shell and a service manager see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

MARCO = Path(sys.prefix) / "bin" / "marco"


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("MARCO_PROFILE", "nope", "MARCO_PROFILE: no profile 'nope'"),
        ("MARCO_OVERRIDES", '{"top_p": 7}', "MARCO_OVERRIDES: top_p: "),
    ],
)
def test_a_worker_that_would_fail_every_job_does_not_start(
    database_url: str, redis_url: str, setting: str, value: str, said: str
) -> None:
    env = os.environ | {"DATABASE_URL": database_url, "REDIS_URL": redis_url, setting: value}
    ended = subprocess.run([MARCO, "worker"], env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and said in ended.stderr, ended.stderr


@pytest.mark.usefixtures("with_hangups")
@pytest.mark.parametrize(
    ("number", "code", "last"),
    [
        (signal.SIGINT, 130, "Interrupted."),
        (signal.SIGTERM, 0, None),
        (signal.SIGQUIT, 0, None),
        (signal.SIGHUP, 0, None),
    ],
)
def test_a_worker_ends_with_the_right_code_and_in_our_words(
    database_url: str, redis_url: str, number: signal.Signals, code: int, last: str | None
) -> None:
    process = subprocess.Popen(
        [MARCO, "worker", "-c", "1"],
        env=os.environ | {"DATABASE_URL": database_url, "REDIS_URL": redis_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches its whole process group, as at a terminal
    )
    assert process.stdout is not None
    with process:
        assert any("ready" in line for line in process.stdout)
        os.killpg(process.pid, number)
        said = process.stdout.read()
    assert process.returncode == code, said
    assert "Hitting" not in said
    assert "shutdown" not in said
    assert last is None or said.strip().endswith(last)


def test_a_worker_under_nohup_outlasts_its_terminal(database_url: str, redis_url: str) -> None:
    process = subprocess.Popen(
        ["nohup", MARCO, "worker", "-c", "1"],
        env=os.environ | {"DATABASE_URL": database_url, "REDIS_URL": redis_url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process:
        assert any("ready" in line for line in process.stdout)
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.terminate()
    (ignored,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
    assert int(ignored, 16) & 1 << (signal.SIGHUP - 1)
    assert process.returncode == 0
