"""docs/containers.md on a real engine, in the order of a stack's life."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import psycopg
import pytest

from tests.containers.stack import (
    CONNECTIONS,
    SHORT_LEASE,
    Stack,
    demo,
    engine_is_missing,
    older,
    stack,
    until,
)

LONG = ("--strategy", "tree", "--rollouts", "200", "--seed", "5")
KILLED_INITDB = """
install -d -o postgres "$PGDATA"
gosu postgres initdb -D "$PGDATA" &
until [ -e "$PGDATA/base/1" ]; do :; done
kill -9 -1
"""
PASSWORDS = {
    "POSTGRES_PASSWORD": "postgres",
    "OWNER_PASSWORD": "marco_migrator",
    "APP_PASSWORD": "marco_worker",
    "AUDITOR_PASSWORD": "marco_reader",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack that all tests of this module go on with."""
    if missing := engine_is_missing():
        pytest.skip(missing)
    with stack(tmp_path_factory.mktemp("clone")) as made:
        yield made


def test_a_bare_clone_comes_up(here: Stack) -> None:
    here.up()
    here.compose("ps")
    health = here.compose("ps", "--format", "{{.Service}} {{.Health}}").split("\n")
    assert {line.split()[-1] for line in health if line} == {"healthy"}


def test_the_demo_through_the_published_ports(here: Stack) -> None:
    results = here.ended(here.submit(jobs=16))
    assert [result["state"] for result in results] == ["succeeded"] * 16


def test_the_demo_and_its_files_through_the_cli_service(here: Stack) -> None:
    ids = here.cli("submit", "-", stdin=demo(16)).split()
    here.cli("watch", *ids)
    assert len(set(ids)) == 16
    here.cli("export", "out")
    jobs = here.folder / "exports" / "out" / "jobs.jsonl"
    assert all(job_id in jobs.read_text() for job_id in ids)
    assert (jobs.stat().st_uid, jobs.stat().st_gid) == (os.getuid(), os.getgid())


def test_the_api_answers_openais_client(here: Stack) -> None:
    address = f"http://127.0.0.1:{here.ports['API']}/v1"
    assert httpx.get(f"{address}/models").status_code == 401
    key = json.loads(here.cli("keys", "create", "--json"))["key"]
    with openai.OpenAI(base_url=address, api_key=key, timeout=300) as client:
        question = {"role": "user", "content": "Tom has 2 boxes with 3 eggs each. How many eggs?"}
        answer = client.chat.completions.create(model="marco-search", messages=[question])
    assert answer.choices[0].message.content


@pytest.mark.parametrize("service", ["worker", "scheduler", "api"])
def test_metrics_in_the_network_of_the_stack(here: Stack, service: str) -> None:
    code = f"import urllib.request as u; print(u.urlopen('http://{service}:9464/metrics').read())"
    assert "marco_" in here.compose("exec", "-T", "console", "python", "-c", code)


def test_an_unchanged_up_recreates_nothing(here: Stack) -> None:
    before = here.containers()
    for _ in range(2):
        here.up("--build")
        assert here.containers() == before


def test_status_gets_in_when_workers_have_all_connections(here: Stack) -> None:
    worker = here.url("marco_worker", "local-only")
    with ExitStack() as opened:
        with pytest.raises(psycopg.OperationalError, match="reserved"):
            for _ in range(CONNECTIONS):
                opened.enter_context(psycopg.connect(worker))
        here.marco("status")


def test_flower_shows_the_worker(here: Stack) -> None:
    if "mher/flower" not in here.run("docker", "image", "ls", "--format", "{{.Repository}}"):
        pytest.skip("the image of the flower profile is not here; tests pull none")
    (here.folder / "marco.env").write_text("MARCO_WORKER_REMOTE_CONTROL=true\n")
    here.up("worker", "flower")
    host = here.compose("exec", "-T", "worker", "hostname").strip()
    address = f"http://127.0.0.1:{here.ports['FLOWER']}"
    workers = {"json": "1", "refresh": "1"}
    until(lambda: host in httpx.get(f"{address}/workers", params=workers).text, 30)
    here.ended(here.submit(jobs=1))
    assert "marco.run_job" in httpx.get(f"{address}/metrics").text
    assert httpx.post(f"{address}/api/worker/shutdown/celery@{host}").status_code == 401
    here.compose("rm", "-sfv", "flower")


def test_settings_of_marco_search_come_from_marco_env(here: Stack) -> None:
    (here.folder / "marco.env").write_text(SHORT_LEASE)
    here.up()
    assert "lease 12 s" in here.compose("logs", "scheduler")


@pytest.mark.parametrize("service", ["worker", "scheduler", "console", "redis", "postgres"])
def test_a_service_that_dies_costs_no_job(here: Stack, service: str) -> None:
    ids = here.submit()
    if service in ("redis", "postgres"):  # whose main process only a kill from outside reaches
        here.compose("kill", "-s", "KILL", service)
        here.up()
    else:
        container = here.containers()[service]
        subprocess.run(["docker", "exec", container, "bash", "-c", "kill -9 -1"], check=False)
        restarts = ("docker", "inspect", "-f", "{{.RestartCount}}", container)
        until(lambda: here.run(*restarts).strip() != "0")
    assert {result["state"] for result in here.ended(ids)} == {"succeeded"}
    here.up()


def test_workers_made_anew_in_the_middle_lose_no_round(here: Stack) -> None:
    undisturbed = here.ended(here.submit(*LONG))
    events = "SELECT count(*) FROM audit_log WHERE event = '{}' AND job_id >= '{}'"
    ids = here.submit(*LONG)
    until(lambda: int(here.psql(events.format("round", min(ids)))) > 8)
    here.up("--force-recreate", "--no-deps", "worker")
    results = here.ended(ids)
    assert int(here.psql(events.format("released", min(ids)))) > 0
    assert int(here.psql(events.format("worker_lost", min(ids)))) == 0
    same = ("answers", "nodes", "rollouts", "generated_tokens")
    assert [[one[name] for name in same] for one in results] == [
        [one[name] for name in same] for one in undisturbed
    ]


def test_make_stack_gives_it_passwords_and_says_where_to_go(here: Stack) -> None:
    said = here.run("python3", "ops/stack.py")
    assert (here.folder / ".env").stat().st_mode & 0o777 == 0o600
    assert f"http://127.0.0.1:{here.ports['CONSOLE']}/" in said
    assert here.secret("MARCO_CONSOLE_TOKEN") in said
    assert here.url("marco_producer", here.secret("APP_PASSWORD")) in said
    for variable, login in PASSWORDS.items():
        psycopg.connect(here.url(login, here.secret(variable))).close()
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(here.url(login, "local-only"))
    assert here.secret("REDIS_PASSWORD") != "local-only"
    ids = here.submit(jobs=1)
    assert here.ended(ids)[0]["state"] == "succeeded"


def test_a_dump_restored_into_a_new_stack_verifies(here: Stack) -> None:
    jobs = here.psql("SELECT count(*) FROM jobs")
    ids = here.submit()  # some of them in the middle
    dump = here.folder / "marco.dump"
    exec_ = ("exec", "-T", "postgres")
    here.compose(*exec_, "pg_dump", "-U", "postgres", "-Fc", "-f", "/tmp/marco.dump", "marco")
    here.compose("cp", "postgres:/tmp/marco.dump", str(dump))
    here.compose("down", "-v")
    here.compose("run", "--rm", "-T", "--entrypoint", "bash", "postgres", "-c", KILLED_INITDB)
    here.up()
    here.compose("stop", "worker", "scheduler", "console", "api")
    here.compose(*exec_, "dropdb", "-U", "postgres", "--force", "marco")
    here.compose(*exec_, "createdb", "-U", "postgres", "marco")
    here.compose(*exec_, "pg_restore", "-U", "postgres", "-d", "marco", stdin=dump.read_bytes())
    here.up()
    assert {result["state"] for result in here.ended(ids)} == {"succeeded"}
    assert int(here.psql("SELECT count(*) FROM jobs")) == int(jobs) + len(ids)
    here.cli("verify", "--all")  # exits with 9 if anything does not fit


def test_down_leaves_nothing_but_the_data(here: Stack) -> None:
    here.compose("down")
    assert [here.left(kind) for kind in ("container", "network")] == [[], []]
    assert len(here.left("volume")) == 3
    here.compose("down", "-v")
    assert here.left("volume") == []


def test_update_in_the_middle_of_jobs_and_back(here: Stack, tmp_path: Path) -> None:
    with older(here, tmp_path) as old:
        old.up("--build")
        ids = old.cli("submit", "-", *LONG, stdin=demo(4)).split()
        until(lambda: int(old.psql("SELECT count(*) FROM audit_log WHERE event = 'round'")) > 8)
        here.up()
        assert {result["state"] for result in here.ended(ids)} == {"succeeded"}
        here.cli("verify", "--all")
        said = old.compose("run", "--rm", "-T", "migrate", status=4)
        assert "newer than this program" in said
        here.up()
