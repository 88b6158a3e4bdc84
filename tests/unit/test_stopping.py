"""How the word to stop reaches a process, and what SIGTERM and SIGUSR1 do in a search."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import stopping


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    yield
    struct.pack_into("d", stopping._TOLD, 0, 0.0)


def test_nobody_is_told_at_first_and_the_earlier_end_counts() -> None:
    assert stopping.left_s() is None
    stopping.tell(100)
    left = stopping.left_s()
    assert left is not None
    assert 0 < left <= 100
    stopping.tell(0)
    stopping.tell(50)
    assert stopping.left_s() == 0.0


def test_children_hear_what_their_parent_is_told() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        while stopping.left_s() is None:
            pass
        os.write(write, b"heard")
        os._exit(0)
    stopping.tell(10)
    assert os.read(read, 5) == b"heard"
    assert os.waitpid(child, 0)[1] == 0
    os.close(read)
    os.close(write)


def test_a_soft_time_limit_is_a_word_to_stop() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with stopping.kept_from_dying(30):
        assert stopping.left_s() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        left = stopping.left_s()
        assert left is not None
        assert 0 < left <= 30
        assert stopping.time_is_up()
        stopping.tell(10)
        assert not stopping.time_is_up()
    struct.pack_into("d", stopping._TOLD, 0, 0.0)
    assert stopping.left_s() is None
    assert signal.getsignal(signal.SIGUSR1) == before


def test_sigterm_counts_when_the_search_has_stopped() -> None:
    code = (
        "import os, signal\n"
        "from worker import stopping\n"
        "with stopping.kept_from_dying(30):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stopping.left_s()\n"
        "    print('stopped in order', flush=True)\n"
        "print('never')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "stopped in order\n", done.stderr
    assert done.returncode == -signal.SIGTERM
