"""What Prometheus gets from a worker and a scheduler after jobs that went well and badly."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from psycopg import errors

from marco_search import metrics
from marco_search.errors import AddressTaken, InvalidSettings
from marco_search.logs import JsonLines
from marco_search.metrics import API, METRICS
from marco_search.settings import Settings
from marco_search.store import db
from marco_search.store.db import Database
from marco_search.store.reads import queries
from marco_search.store.reads.exporter import MOST_TENANTS, OTHERS, Exporter
from producer import Producer
from producer.waits import workers
from tests.integration.toy_worker import DEADLY
from tests.integration.toys import (
    ROOT,
    Interrupted,
    environment,
    free_port,
    insert,
    open_database,
    process,
    question,
    runner,
    schedule,
    settings_for,
    wait_until,
)
from tests.toy import ToyRuntime
from worker import main

PATIENCE_S = 120
MARCO = [sys.executable, "-m", "marco_search.cli.main"]
DASHBOARD = ROOT / "ops" / "monitoring" / "grafana" / "dashboards" / "marco.json"


@dataclass
class Scraped:
    """What an address answers."""

    text: str

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert found, f"no {name} {labels}"
        return sum(found)


class Queue:
    """What an exporter has, read anew each time."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._now = 0.0
        self._registry = CollectorRegistry()
        present = partial(workers, settings)
        self._registry.register(Exporter(database, present, clock=lambda: self._now))

    def read(self) -> Scraped:
        self._now += 3600
        return Scraped(generate_latest(self._registry).decode())


def scrape(port: int) -> Scraped:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return Scraped(answer.read().decode())


def answers(port: int) -> bool:
    try:
        scrape(port)
    except URLError:
        return False
    return True


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with open_database(database_url) as opened:
        yield opened


def test_what_a_worker_and_a_scheduler_serve(
    database: Database, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    here, there = free_port(), free_port()
    settings = settings_for(
        database_url, redis_url, lease_s=2.0, heartbeat_s=0.5, worker_scheduler=False,
        quarantine_after=2, log_format="json", metrics_port=here,
    )  # fmt: skip
    folder, log = tmp_path / "temporary", tmp_path / "worker"
    (folder / "marco-counts-of-one-that-was-killed").mkdir(parents=True)
    env = environment(settings) | {"TMPDIR": str(folder)}
    toy = [sys.executable, "-m", "tests.integration.toy_worker", "2", "0.0"]
    with ExitStack() as stack:
        producer = stack.enter_context(Producer(database_url, redis_url))
        stack.enter_context(process(toy, env, log))
        scheduler = [*MARCO, "scheduler", "--metrics-port", str(there)]
        stack.enter_context(process(scheduler, env, tmp_path / "scheduler"))
        queue = Queue(database, settings)
        queue.read()  # it counts what ends from now on
        jobs = producer.submit_many([question(f"What is {i} + {i}?") for i in range(6)])
        queue.read()
        deadly = producer.submit(question(DEADLY))
        producer.wait([*jobs, deadly], timeout_s=PATIENCE_S)

        def counted() -> bool:
            return scrape(here).value("marco_attempts_total", outcome="succeeded") == 6

        wait_until(counted, "the worker has counted its last job", PATIENCE_S)
        wait_until(lambda: answers(there), "the scheduler serves metrics", PATIENCE_S)
        worker, scheduled, known = scrape(here), scrape(there), queue.read()
        counting = {file.stem.rpartition("_")[2] for file in folder.glob("marco-counts-*/*.db")}
        assert all(Path("/proc", pid).exists() for pid in counting - {"ended"})
        assert "ended" in counting
    with database.transaction() as conn:
        totals = conn.execute(
            "SELECT sum(rounds), sum(nodes), sum(rollouts), sum(generated_tokens),"
            " sum(prompt_tokens), sum(cached_tokens), max(lease_generation) FROM jobs"
        ).fetchone()
        assert totals is not None
    names = ("rounds", "nodes", "rollouts", "generated_tokens", "prompt_tokens", "cached_tokens")
    for name, total in zip(names, totals, strict=False):
        assert worker.value(f"marco_{name}_total") == total, name
    # Killed children have counted what they did before; the parent adds it up.
    assert worker.value("marco_searches_total") == 6
    assert worker.value("marco_claim_seconds_count") == 8
    assert worker.value("marco_job_wait_seconds_count") == 8
    assert worker.value("marco_answer_confidence_ratio_count") == 6
    assert known.value("marco_jobs", tenant="default", state="dead") == 1
    assert known.value("marco_jobs", state="queued") == known.value("marco_jobs", state="running")
    assert known.value("marco_jobs_ended_total", state="succeeded") == 6
    assert known.value("marco_job_losses_total", tenant="default") == 2
    assert scheduled.value("marco_jobs_reclaimed_total") == 2
    assert "marco_database_up" in scheduled.text
    assert known.value("marco_workers") == known.value("marco_broker_up") == 1
    assert known.value("marco_chain_links_total") == 8  # with the first
    assert known.value("marco_trail_bytes", table="nodes") > 8192
    assert known.value("marco_oldest_due_job_age_seconds") == 0
    described = set(re.findall(r"^# TYPE (marco_\w+)", worker.text + known.text, re.MULTILINE))
    # Only what never happened is missing: a metric with labels has no sample before.
    assert described == {metric.name for metric in METRICS if metric.source != API}
    assert not list(folder.iterdir()), "the worker has left files"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    about = [event for event in events if event.get("job") == str(jobs[0].id)]
    (ended,) = (event for event in about if "succeeded" in event["message"])
    assert ended["trace_id"] == jobs[0].id.hex
    assert (ended["attempt"], ended["level"]) == (1, "info") and ended["round"] > 1
    said = [json.loads(line) for line in (tmp_path / "scheduler").open()]
    assert all(event["time"] for event in said)
    lost = [event["job"] for event in said if f"job {deadly.id}" in event["message"]]
    assert lost == [str(deadly.id)] * 2


def test_promtool_takes_the_pages_and_every_panel_of_the_dashboard_has_data(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, which comes with Prometheus")
    settings = settings_for(database_url, redis_url, worker_scheduler=False)
    port, *ports = (free_port() for _ in range(4))
    commands = [
        [sys.executable, "-m", "tests.integration.toy_worker", "1", "0.0"],
        [*MARCO, "scheduler"],
        [*MARCO, "serve", "--port", str(port)],
    ]
    with ExitStack() as stack:
        producer = stack.enter_context(Producer(database_url, redis_url))
        job = producer.submit(question())  # before the scheduler first reads, and not 5 s later
        for command, at in zip(commands, ports, strict=True):
            env = environment(settings) | {"MARCO_METRICS_PORT": str(at)}
            stack.enter_context(process(command, env, tmp_path / str(at)))
        wait_until(lambda: all(map(answers, ports)), "all serve metrics", PATIENCE_S)
        producer.wait([job], timeout_s=PATIENCE_S)

        pages: list[str] = []

        def shown() -> bool:
            with suppress(HTTPError, URLError):
                urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=30)
            pages[:] = [scrape(at).text for at in ports]
            # There are no workers on the scheduler's where Redis took half a second to answer.
            counts = ("_searches_total{", "_jobs{", "_workers ", "_http_requests_total{")
            return all(f"marco{name}" in "".join(pages) for name in counts)

        wait_until(shown, "all have counted something", PATIENCE_S)
    for page in pages:
        told(promtool, "check", "metrics", given=page)
    (tmp_path / "none.yml").write_text("groups: []")
    (tmp_path / "panels.yml").write_text(json.dumps(panels_test(pages)))
    told(promtool, "test", "rules", str(tmp_path / "panels.yml"))


def told(*command: str, given: str = "") -> None:
    """Fails with what the program says."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def panels_test(pages: list[str]) -> dict[str, Any]:
    """A test for promtool: series as these pages have them, and the dashboard's questions."""
    series = ['up{job="marco-worker"}']
    for page in pages:
        series += [line.rpartition(" ")[0] for line in page.splitlines() if line[0] != "#"]
    asked = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$tenant", ".*")
            # Where nothing may be what is to be hoped for, the question must only be well-formed.
            empty = "noValue" in panel["fieldConfig"]["defaults"]
            found = f"count({expression}) > bool 0" + " or vector(1)" * empty
            value = {"labels": "{}", "value": 1}
            asked.append({"expr": found, "eval_time": "5m", "exp_samples": [value]})
    values = [{"series": name, "values": "0+1x20"} for name in series]
    test = {"interval": "15s", "input_series": values, "promql_expr_test": asked}
    return {"rule_files": ["none.yml"], "evaluation_interval": "15s", "tests": [test]}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """What this process counts as a worker."""
    monkeypatch.setattr(metrics, "_counting", {})
    registry = CollectorRegistry()
    metrics.count([metrics.WORKER], registry)
    return registry


def test_a_claim_that_meets_a_time_limit_is_measured_and_is_no_attempt(
    database: Database,
    database_url: str,
    counted: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(db._SETTINGS, "lock_timeout", "'50ms'")
    insert(database, question())
    with open_database(database_url) as impatient, database.transaction() as conn:
        conn.execute("LOCK TABLE jobs IN SHARE MODE")
        runner(settings_for(database_url, ""), impatient, ToyRuntime()).run_next()
    assert counted.get_sample_value("marco_claim_seconds_count") == 1
    assert counted.get_sample_value("marco_attempts_total", {"outcome": "left"}) == 0
    assert "no job could be claimed" in caplog.text


def test_a_lost_lease_is_counted_and_its_event_names_the_job(
    database: Database,
    database_url: str,
    counted: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings_for(database_url, "")
    (stored,) = insert(database, question())

    def lose() -> None:
        with database.transaction() as conn:
            conn.execute("UPDATE jobs SET lease_expires_at = now() - interval '1 s'")
        schedule(database)
        runner(settings, database, ToyRuntime(), "other").run_next()

    caplog.handler.setFormatter(JsonLines())
    runner(settings, database, Interrupted(1, lose)).run_next()
    for outcome in ("lease_lost", "succeeded"):
        assert counted.get_sample_value("marco_attempts_total", {"outcome": outcome}) == 1
    (event,) = (json.loads(e) for e in caplog.text.splitlines() if "lost its lease" in e)
    assert (event["job"], event["attempt"]) == (str(stored.id), 1)
    assert (event["round"], event["trace_id"]) == (1, stored.id.hex)


def test_a_port_that_is_taken_is_said_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = settings_for("postgresql://nowhere/", "", metrics_port=taken.getsockname()[1])
        with pytest.raises(AddressTaken, match="MARCO_METRICS_PORT"):
            main.run(settings)
    with pytest.raises(InvalidSettings, match="MARCO_HEARTBEAT_S"):
        main.run(settings_for("postgresql://nowhere/", "", heartbeat_s=1, lease_s=1))


def test_the_exporter_asks_seldom_and_names_few_tenants(database: Database) -> None:
    now = 100.0
    exporter = Exporter(database, lambda: None, clock=lambda: now)

    def values(name: str) -> dict[Any, float]:
        families = {family.name: family for family in exporter.collect()}
        return {tuple(s.labels.values()): s.value for s in families[name].samples}

    many = MOST_TENANTS + 5
    insert(database, *(question(tenant=f"tenant-{i:02}") for i in range(many)))
    assert values("marco_broker_up") == {(): 0}
    jobs = values("marco_jobs")
    queued = {tenant: count for (tenant, state), count in jobs.items() if state == "queued"}
    assert len(queued) == MOST_TENANTS + 1
    assert queued[OTHERS] == 5
    insert(database, question(tenant="tenant-00"))
    assert values("marco_jobs")["tenant-00", "queued"] == 1, "read again too soon"
    now += 3600
    assert values("marco_jobs")["tenant-00", "queued"] == 2
    with database.transaction() as conn:
        conn.execute("UPDATE jobs SET paused_at = now() WHERE tenant = 'tenant-00'")
        conn.execute(
            "UPDATE jobs SET run_after = now() - interval '1 h' WHERE tenant = 'tenant-01'"
        )
    now += 3600
    assert values("marco_oldest_due_job_age_seconds")["tenant-00",] == 0
    assert values("marco_oldest_due_job_age_seconds")["tenant-01",] >= 3600


def test_an_exporter_without_postgres_says_so() -> None:
    with open_database("postgresql://nobody:none@127.0.0.1:1/none") as away:
        families = {family.name: family for family in Exporter(away, lambda: []).collect()}
    assert families["marco_database_up"].samples[0].value == 0


def test_an_exporter_goes_on_after_an_error_that_nobody_expected(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    exporter = Exporter(database, lambda: [], clock=lambda: now)

    def up() -> float:
        families = {family.name: family for family in exporter.collect()}
        return families["marco_database_up"].samples[0].value

    with monkeypatch.context() as broken:
        broken.setattr(queries, "missing_models", Mock(side_effect=errors.InternalError_("torn")))
        assert up() == 0
    now += 3600
    assert up() == 1


def test_the_runbook_finds_the_transaction_that_keeps_the_dead_rows(database_url: str) -> None:
    section = (ROOT / "docs" / "runbook.md").read_text().split("### MarcoClaimsSlow")[1]
    lock, dead, oldest = re.findall(r"```sql\n(.*?)```", section.split("\n### ")[0], re.DOTALL)
    with psycopg.connect(database_url) as forgotten, psycopg.connect(database_url) as conn:
        forgotten.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        forgotten.execute("SELECT FROM jobs")
        conn.execute("CREATE TABLE later ()")  # gives the next transaction a newer horizon
        conn.commit()
        assert conn.execute(lock).fetchall() == []
        assert conn.execute(dead).fetchone() is not None
        found = [row[0] for row in conn.execute(oldest)]
        assert forgotten.info.backend_pid in found
