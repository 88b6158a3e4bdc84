"""The command line against real services: the demo, and what can be done with its data."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marco_search import settings as settings_module
from marco_search.cli.main import main
from marco_search.cli.solve_commands import QUERIES
from marco_search.local import is_running
from marco_search.local.programs import purge
from tests.blas import seen, watched
from tests.memory import data_folder

ROOT = Path(__file__).resolve().parents[2]
JOBS = [
    {
        "kind": "reasoning",
        "question": "Tom has 3 boxes with 12 eggs each. Tom loses 7 eggs. "
        "How many eggs does Tom have now?",
        "expected": "29",
    },
    {"kind": "translation", "text": "这支口红不踩雷", "source": "zh", "target": "en"},
]
LIMIT_S = 300
MARCO = ("-m", "marco_search.cli.main")


class Cli:
    """`marco` in one MARCO_HOME: in this process, or in one of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.file = home.parent / "jobs.jsonl"
        self.blas = home.parent / "blas"  # what its processes decode with
        self.file.write_text("".join(json.dumps(job) + "\n" for job in JOBS))

    def start(self, *words: str, program: tuple[str, ...] = MARCO) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *program, *words],
            cwd=ROOT,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, file: str) -> tuple[int, str, str]:
        return self.run(program=(file,))

    def run(self, *words: str, program: tuple[str, ...] = MARCO) -> tuple[int, str, str]:
        process = self.start(*words, program=program)
        out, err = process.communicate(timeout=LIMIT_S)
        return process.returncode, out, err

    def processes(self) -> list[str]:
        """Command lines of all processes that were given this home, or write their log there.

        Celery writes its title over its environment.
        """
        mine = f"MARCO_HOME={self.home}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                logs = (folder / "fd" / "1").readlink().is_relative_to(self.home)
                if logs or mine in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(
                        (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
                    )
            except OSError:
                continue  # it ended, or is another user's
        return found

    def _environment(self) -> dict[str, str]:
        dropped = ("DATABASE_URL", "REDIS_URL")
        kept = {name: value for name, value in watched(self.blas).items() if name not in dropped}
        return {**kept, "MARCO_HOME": str(self.home)}


@pytest.fixture(scope="module")
def cli() -> Iterator[Cli]:
    with data_folder() as folder:
        here = Cli(folder / "home")
        yield here
        here.run("down")
        if here.home.exists():
            purge(here.home)


@pytest.fixture(scope="module")
def demo(cli: Cli) -> tuple[int, str, str]:
    """The demo on two jobs, in a home that was never used before."""
    options = ("--strategy", "step", "--rollouts", "4", "--no-early-stop")
    return cli.run("demo", str(cli.file), *options)


@pytest.fixture(scope="module")
def kept(cli: Cli, demo: Any) -> Iterator[Cli]:
    """The demo's data with Postgres and Redis running."""
    assert cli.run("up")[0] == 0
    yield cli
    assert cli.run("down")[0] == 0


class Here:
    """`marco` in this process: an exit code, standard output, standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        code = main(words)
        return code, *self._capsys.readouterr()

    def json(self, *words: str, code: int = 0) -> Any:
        found, out, err = self(*words, "--json")
        assert found == code, err
        return json.loads(out)


@pytest.fixture
def marco(
    kept: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MARCO_HOME", str(kept.home))
    settings_module.load.cache_clear()
    yield Here(capsys)
    settings_module.load.cache_clear()


def test_the_demo_answers_shows_and_leaves_nothing_running(
    cli: Cli, demo: tuple[int, str, str]
) -> None:
    code, out, err = demo
    assert code == 0, err
    assert "2 of 2 answered" in out
    assert "* (the question)" in out
    for title in QUERIES:
        assert title in out
    figures = json.loads((cli.home / "bench" / "demo.json").read_text())
    assert set(figures) == {
        "jobs", "answered", "correct", "checked", "nodes", "tokens", "seconds",
    }  # fmt: skip
    assert (figures["jobs"], figures["answered"], figures["checked"]) == (2, 2, 1)
    assert not is_running(cli.home)
    assert cli.processes() == []


def test_the_next_command_starts_the_services_for_itself(
    cli: Cli, demo: tuple[int, str, str]
) -> None:
    code, out, _ = cli.run("sql", "select count(*) from nodes", "--csv")
    figures = json.loads((cli.home / "bench" / "demo.json").read_text())
    assert (code, out) == (0, f"count\n{figures['nodes']}\n")
    assert not is_running(cli.home)


def test_the_demo_runs_again_beside_what_is_there(cli: Cli, demo: tuple[int, str, str]) -> None:
    assert f"made a new database in {cli.home}" in demo[2]
    code, out, err = cli.run("demo", str(cli.file), "--rollouts", "2", "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["answered"] == 2
    assert [job["state"] for job in data["results"]] == ["succeeded", "succeeded"]
    assert cli.processes() == []


def test_an_interrupted_demo_exits_with_130_and_leaves_nothing(
    cli: Cli, demo: tuple[int, str, str]
) -> None:
    process = cli.start("demo", str(cli.file), "--rollouts", "4096", "--no-early-stop")
    assert process.stdout is not None
    for line in process.stdout:
        if "running" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert cli.processes() == []
    assert not is_running(cli.home)


def test_sql_reads_and_never_writes(marco: Here) -> None:
    assert marco.json("sql", "select 1 as a, array[1, 2] as b") == [{"a": 1, "b": [1, 2]}]
    code, out, err = marco("sql", "select generate_series(1, 5) as n", "--limit", "2")
    assert (code, out.split()[-2:]) == (0, ["1", "2"])
    assert "--limit 0 prints all" in err
    before = marco.json("sql", "select count(*) as n from jobs")
    for statement in (
        "delete from jobs",
        "update jobs set state = 'failed' returning id",
        "select 1; drop table jobs",
        "commit",
        "set transaction read write",
        "copy (select 1) to program 'true'",
        "select nope",
        "",
    ):
        code, _, err = marco("sql", statement)
        assert code == 2, statement
        assert "Traceback" not in err
    assert marco.json("sql", "select count(*) as n from jobs") == before


def test_sql_is_stopped_after_its_time_limit(marco: Here) -> None:
    code, _, err = marco("sql", "select pg_sleep(60)", "--timeout", "0.1")
    assert code == 2
    assert "longer than 0.1 s" in err


def first_job(marco: Here) -> str:
    query = "select job_id from audit.jobs where expected = '29' order by created_at limit 1"
    return str(marco.json("sql", query)[0]["job_id"])


def test_show_has_answers_totals_and_the_tree(marco: Here) -> None:
    job_id = first_job(marco)
    code, out, _ = marco("show", job_id)
    assert code == 0
    assert job_id in out
    assert "expected 29" in out
    assert "4 rollouts" in out
    assert "      4   ." in out
    # The beginning of an id is a time, its end is random: either will do.
    assert marco("show", job_id[-8:])[1] == out
    assert marco("show", job_id[:18])[1] == out
    data = marco.json("show", job_id)
    assert data["result"]["rollouts"] == 4
    assert len(data["tree"]["nodes"]) == data["job"]["nodes"] + 1
    leaf = data["tree"]["winning_path"][-1]
    assert data["tree"]["nodes"][leaf]["action"] == "answer"


def test_a_job_must_be_named_well(marco: Here) -> None:
    assert marco("show", "0000dead")[0] == 3
    assert marco("show", "01")[0] == 2
    assert marco("show", "x';--")[0] == 2
    prefix = first_job(marco)[:6]  # all jobs of these minutes
    code, _, err = marco("show", prefix)
    assert code == 2
    assert "matches several jobs" in err


def test_a_submitted_job_can_be_seen_waited_for_and_cancelled(marco: Here) -> None:
    (job_id,) = marco.json("submit", "--question", "What is 1 + 1?", "--rollouts", "2")["ids"]
    listed = marco.json("status", job_id)["jobs"]
    assert [(job["job_id"], job["state"]) for job in listed] == [(job_id, "queued")]
    assert marco("wait", job_id, "--timeout", "0.1")[0] == 6
    assert marco.json("cancel", job_id) == {"jobs": [{"job_id": job_id, "state": "cancelled"}]}
    assert marco("wait", job_id)[0] == 7
    assert marco("watch", job_id)[0] == 7
    code, out, _ = marco("results", "--jsonl", job_id)
    assert (code, json.loads(out)["state"]) == (0, "cancelled")


def test_a_worker_answers_what_was_submitted(kept: Cli, marco: Here) -> None:
    worker = kept.start("worker", "-c", "1", "--name", "test")
    try:
        code, out, _ = marco("submit", str(kept.file), "--rollouts", "2", "--strategy", "vote")
        ids = out.split()
        assert (code, len(ids)) == (0, 2)
        code, out, _ = marco("watch", *ids, "--timeout", str(LIMIT_S))
        assert code == 0
        assert "2 jobs: 2 succeeded" in out
        assert [job["strategy"] for job in marco.json("results", *ids)] == ["vote", "vote"]
        code, out, err = kept.python("examples/submit.py")
        assert code == 0, err
        assert "sent twice, one job: True" in out
        assert "refused: options.rollouts" in out
    finally:
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=LIMIT_S)
    assert worker.returncode == 0, err


def test_doctor_s_exit_code_says_whether_all_is_well(marco: Here) -> None:
    code, out, _ = marco("doctor", "--json")
    found = json.loads(out)
    assert code == (0 if found["ok"] else 4)
    wrong = {check["name"] for check in found["checks"] if not check["ok"]}
    assert wrong <= {"worker"}  # messages of cancelled jobs may lie in the queue


def test_up_and_down_say_what_they_did(marco: Here) -> None:
    again = marco.json("up")
    assert again["started"]
    assert ":***@127.0.0.1:" in again["database_url"]
    migrated = marco.json("migrate")
    assert migrated["before"] == migrated["after"]


def test_the_demo_s_jobs_verify_and_replay_to_the_same_bits(marco: Here, tmp_path: Path) -> None:
    job = marco.json("status")["jobs"][0]["job_id"]
    everything = marco.json("verify", "--all")
    assert everything["ok"] and everything["links"] == everything["jobs"] + 1
    one = marco.json("verify", job)["jobs"][0]
    assert (one["job_id"], one["status"]) == (job, "valid")
    again = marco.json("replay", job)
    assert (again["ok"], again["same_bits"], again["first_difference"]) == (True, True, None)
    code, out, _ = marco("replay", job)
    assert (code, "The same tree, bit for bit" in out) == (0, True)


def test_worker_and_replay_decode_with_one_blas_thread(marco: Here, kept: Cli) -> None:
    job = marco.json("status")["jobs"][0]["job_id"]
    assert seen(kept.blas) == {"[1]"}, "the demo's worker"
    shutil.rmtree(kept.blas)
    assert kept.run("replay", job)[0] == 0
    assert seen(kept.blas) == {"[1]"}


def test_a_replay_on_another_kind_of_processor_says_so(
    marco: Here, kept: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = marco.json("status")["jobs"][0]["job_id"]
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    code, out, err = kept.run("replay", job, "--json")
    found = json.loads(out)
    assert found["engine_then"] == marco.json("replay", job)["engine"], err
    if not found["same_bits"]:  # not every processor can act as one without AVX
        assert (code, found["ok"], found["same_engine"]) == (10, False, False)
        code, out, _ = kept.run("replay", job)
        assert code == 10
        assert "the last digits may differ" in out and "does not prove a change" in out


def test_a_stored_job_is_scored_under_other_rewards(marco: Here) -> None:
    job = marco.json("status")["jobs"][0]["job_id"]
    answer = marco.json("show", job)["result"]["answers"][0]
    own, *others = marco.json("replay", job, "--reward", "confidence", "--reward", "tail")
    assert own["answer"] and (own["reward"], len(others)) == ("confidence", 1)
    assert own["share"] == pytest.approx(answer["share"], abs=1e-3)
    code, _, err = marco("replay", job, "--reward", "nonsense")
    assert (code, "use a reward of" in err) == (2, True)


def test_an_anchor_is_signed_and_a_doctored_one_refused(marco: Here, tmp_path: Path) -> None:
    key, kept, doctored = (tmp_path / name for name in ("key.pem", "kept.json", "doctored.json"))
    public = marco.json("anchor", "--new-key", str(key))["public_key"]
    assert key.stat().st_mode & 0o777 == 0o600
    anchor = marco.json("anchor", "--key", str(key))
    assert anchor["public_key"] == public
    kept.write_text(json.dumps(anchor))
    code, out, _ = marco("verify", "--anchor", str(kept), "--public-key", public)
    assert (code, public in out, "Everything matches." in out) == (0, True, True)
    doctored.write_text(json.dumps(anchor | {"jobs": 99}))
    assert marco("verify", "--anchor", str(doctored))[0] == 2
    assert marco("verify", "--anchor", str(kept), "--public-key", "00" * 32)[0] == 2
    del anchor["signature"], anchor["public_key"]
    doctored.write_text(json.dumps(anchor | {"head": "00" * 32}))
    code, out, _ = marco("verify", "--anchor", str(doctored))
    assert (code, "rewritten since" in out) == (9, True)
