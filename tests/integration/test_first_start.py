"""Ctrl-C at any moment of the first start: the next command repairs what it left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from marco_search.local import down
from marco_search.local.programs import purge
from tests.memory import data_folder

MARCO = Path(sys.prefix) / "bin" / "marco"
INTERRUPTIONS = 18
IN_A_ROW = 6  # then a command must work
LIMIT_S = 120


@pytest.fixture
def home() -> Iterator[Path]:
    """A home where nothing was ever started, deleted afterwards."""
    with data_folder() as folder:
        yield folder / "a home"
        down(folder / "a home")
        _purge(folder / "a home")


def _purge(home: Path) -> None:
    if home.exists():
        purge(home)


def _start(home: Path, *words: str) -> subprocess.Popen[str]:
    names = ("DATABASE_URL", "REDIS_URL")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.Popen(
        [MARCO, *words],
        env=environment | {"MARCO_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches its whole process group, as at a terminal
    )


def _interrupted(home: Path, words: tuple[str, ...], after_s: float) -> tuple[int, str]:
    """Exit code and output of a start that gets Ctrl-C after so long.

    Once more where Python itself had not come to the program: that says nothing of it. Its own
    start may end with an error of another kind (site, `import re` in the script `marco`).
    """
    while True:
        with _start(home, *words) as process:
            time.sleep(after_s)
            os.killpg(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=LIMIT_S)
        if process.returncode != 1 or "marco_search/" in output:
            return process.returncode, output


@pytest.mark.parametrize("module", ["click", "marco_search.cli.job_commands", "pydantic_core"])
def test_ctrl_c_while_the_program_is_loaded_ends_it_without_a_word(module: str) -> None:
    interrupted_import = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from marco_search.cli import run\n"
        "run()\n"
    )
    words = [sys.executable, "-c", interrupted_import, "status"]
    ended = subprocess.run(words, capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")


def test_ctrl_c_at_any_moment_of_the_first_start(home: Path) -> None:
    chosen = random.Random(15)
    submit = ("submit", "--question", "2 + 2?")
    other = (("up",), ("up", "--foreground"), submit)  # beside submit, in each row
    for i in range(INTERRUPTIONS):
        words = other[i // IN_A_ROW] if i % 2 else submit
        # Each start goes on where the one before was interrupted.
        code, output = _interrupted(home, words, chosen.uniform(0.1, 1.2))
        # -SIGINT: before the program had begun. Anything else: it met what was left behind.
        assert code in (0, 130, -signal.SIGINT), (i, words, output)
        if (i + 1) % IN_A_ROW:
            continue
        with _start(home, "submit", "--question", "3 + 3?") as process:
            output, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, (i, output)
        down(home)
        _purge(home)


def test_a_home_of_version_0_1_0_has_its_jobs(home: Path) -> None:
    def run(*words: str) -> str:
        with _start(home, *words) as process:
            output, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, output
        return output

    run("submit", "--question", "2 + 2?")
    # Its file had parts of the addresses.
    of_0_1_0 = {"database_password": "00", "redis_password": "00", "database_port": 1}
    (home / "services.json").write_text(json.dumps(of_0_1_0))
    assert "2 + 2?" in run("status")
