"""How a request to shut down reaches a process, and what SIGTERM and SIGUSR1 do in a search."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from worker.shutdown import Shutdown


def test_of_several_requests_the_earliest_deadline_counts() -> None:
    shutdown = Shutdown()
    assert shutdown.seconds_left is None
    shutdown.request(100)
    left = shutdown.seconds_left
    assert left is not None
    assert 0 < left <= 100
    shutdown.request(0)
    shutdown.request(50)
    assert shutdown.seconds_left == 0.0


def test_children_see_the_request_of_their_parent() -> None:
    shutdown = Shutdown()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        while shutdown.seconds_left is None:
            pass
        os.write(write, b"heard")
        os._exit(0)
    shutdown.request(10)
    assert os.read(read, 5) == b"heard"
    assert os.waitpid(child, 0)[1] == 0
    os.close(read)
    os.close(write)


def test_a_soft_time_limit_stops_only_this_process() -> None:
    shutdown, before = Shutdown(), signal.getsignal(signal.SIGUSR1)
    with shutdown.deferred_signals(30):
        assert shutdown.seconds_left is None
        os.kill(os.getpid(), signal.SIGUSR1)
        left = shutdown.seconds_left
        assert left is not None
        assert 0 < left <= 30
        assert shutdown.soft_time_limit_reached
    assert shutdown.seconds_left is None
    assert signal.getsignal(signal.SIGUSR1) == before
    with shutdown.deferred_signals(30):
        os.kill(os.getpid(), signal.SIGUSR1)
        shutdown.request(10)
        assert not shutdown.soft_time_limit_reached


def test_sigterm_takes_effect_when_the_search_has_stopped() -> None:
    code = (
        "import os, signal\n"
        "from worker.shutdown import Shutdown\n"
        "shutdown = Shutdown()\n"
        "with shutdown.deferred_signals(30):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert shutdown.seconds_left\n"
        "    print('stopped in order', flush=True)\n"
        "print('never')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "stopped in order\n", done.stderr
    assert done.returncode == -signal.SIGTERM
