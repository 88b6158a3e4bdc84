"""`marco verify` as it is installed, on more jobs than one process looks at by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from marco_search.store.seal import verification
from ops.bench import store
from tests.integration.toys import (
    insert,
    open_database,
    question,
    runner,
    settings_for,
    wait_until,
)
from tests.toy import ToyRuntime

MARCO = Path(sys.prefix) / "bin" / "marco"
JOBS, NODES, ROLLOUTS = 3_000, 60_000, 10
NO_GUARD = """
import sys
from marco_search.cli.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def url(module_database_url: str) -> Iterator[str]:
    """a database with 3,000 jobs that have ended."""
    made = module_database_url
    settings = settings_for(made, "redis://127.0.0.1:1/0")
    with open_database(made) as database:
        asked = [question(options={"seed": i, "rollouts": ROLLOUTS}) for i in range(4)]
        for _ in insert(database, *asked):
            runner(settings, database, ToyRuntime()).run_next()
    store.build(made, JOBS, processes=1, searched=len(asked), vocabulary=False)
    yield made


def start(url: str, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "verify", "--json"],
        env=os.environ | {"DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1/0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def spawned(parent: int) -> list[int]:
    """The processes that check jobs for `parent`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state = (path / "stat").read_text().rpartition(")")[2].split()
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(state[1]) == parent and b"spawn_main" in words and state[0] != "Z":
            found.append(int(path.name))
    return found


def checking(url: str, process: subprocess.Popen[str]) -> list[int]:
    """Both processes, once they read the database."""

    def reading() -> bool:
        assert process.poll() is None, process.communicate()
        with psycopg.connect(url) as conn:
            count = conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'marco verify'"
                " AND datname = current_database()"
            ).fetchone()
        assert count is not None
        return count >= (3,) and len(spawned(process.pid)) == 2

    wait_until(reading, "two processes and their parent read")
    return spawned(process.pid)


def test_everything_fits(url: str) -> None:
    process = start(url, str(MARCO))
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    said = json.loads(out)
    assert (said["jobs"], said["ok"]) == (JOBS, True)
    assert said["nodes"] >= NODES, said


def test_a_script_that_would_run_anew_in_each_process_does_not(url: str, tmp_path: Path) -> None:
    """Some installers write scripts without `if __name__ == "__main__"`."""
    script = tmp_path / "script.py"
    script.write_text(NO_GUARD)
    process = start(url, sys.executable, str(script))
    processes = checking(url, process)
    assert len(processes) == 2
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


def test_ctrl_c_while_the_processes_start(url: str) -> None:
    process = start(url, str(MARCO))
    wait_until(lambda: bool(spawned(process.pid)), "a process starts")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


def test_no_thread_of_the_parent_cuts_a_start_short() -> None:
    """Ctrl-C that another thread receives, too, waits until the processes have been started."""
    done, steps = threading.Event(), []
    other = threading.Thread(target=done.wait)
    other.start()
    seen, write = os.pipe()
    os.set_blocking(write, False)
    wakeup = signal.set_wakeup_fd(write)
    try:
        with pytest.raises(KeyboardInterrupt), verification._main_module_hidden():
            signal.pthread_kill(other.ident or 0, signal.SIGINT)
            os.read(seen, 1)  # the signal has come
            steps.append("all are started")
    finally:
        signal.set_wakeup_fd(wakeup)
        done.set()
    assert steps


def test_a_process_that_is_killed_is_said(url: str) -> None:
    process = start(url, str(MARCO))
    os.kill(checking(url, process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert json.loads(err)["error"]["type"] == "VerificationStopped"
    assert "--processes 1" in err


def test_nothing_is_left_of_one_that_is_killed_itself(url: str) -> None:
    process = start(url, str(MARCO))
    processes = checking(url, process)
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not any(Path(f"/proc/{p}").exists() for p in processes), "all are gone")
