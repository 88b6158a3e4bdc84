"""What version 0.1.0 wrote still verifies, is still shown, and can still not be tampered with.

tests/data/v0_1_0 is a database with an archive and two anchors, written by that version;
make.txt says how. They stay as they are, whatever is migrated.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result

from marco_search import migrations
from marco_search import settings as settings_module
from marco_search.audit.findings import Status
from marco_search.audit.formats import NEWEST
from marco_search.cli.main import cli
from marco_search.cli.output import OTHER_ENGINE
from marco_search.errors import RedactionRefused
from marco_search.local import ServiceUrls
from marco_search.store.seal import redactions
from marco_search.store.seal.verification import check_range, verify_all, verify_job
from tests.databases import scratch_database
from tests.integration.toys import open_database, run_job, runner, settings_for
from tests.toy import ToyRuntime

OLD = Path(__file__).parents[1] / "data" / "v0_1_0"
JOBS = {name: UUID(text) for name, text in json.loads((OLD / "jobs.json").read_text()).items()}


def restore(url: str) -> None:
    """Fill an empty database with what 0.1.0 wrote, and migrate it."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(gzip.decompress((OLD / "database.sql.gz").read_bytes()))
    migrations.upgrade(url)


@pytest.fixture(scope="module")
def restored(services: ServiceUrls, template_database: str) -> Iterator[str]:
    """The old database, migrated. (The template's migration has made the roles.)"""
    with scratch_database(services.database_url) as url:
        restore(url)
        yield url


@pytest.fixture
def url(services: ServiceUrls, restored: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A copy of it that may be changed, which the command line uses."""
    with scratch_database(services.database_url, template=restored) as copy:
        monkeypatch.setenv("DATABASE_URL", copy)
        monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
        settings_module.load.cache_clear()
        yield copy
    settings_module.load.cache_clear()


def marco(*words: str) -> Result:
    result = CliRunner().invoke(cli, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_it_fits_with_anchors_and_archive(url: str, tmp_path: Path) -> None:
    report = verify_all(url)
    assert report.findings == ()
    assert (report.jobs, report.open_jobs, report.archived_jobs, report.links) == (26, 4, 2, 26)
    words = [f"--anchor={OLD / name}" for name in ("anchor-early.json", "anchor-signed.json")]
    result = marco("verify", *words)
    assert (result.exit_code, "Everything matches." in result.output) == (0, True), result.output
    result = marco("verify", "--archive", str(OLD / "archive" / "2026-08"), "--json")
    assert (result.exit_code, json.loads(result.output)["jobs"]) == (0, 2), result.output


def test_it_is_shown_exported_and_scored_again(url: str, tmp_path: Path) -> None:
    for name in ("weighted", "open_ended", "translation", "resumed", "dead", "archived"):
        assert marco("show", str(JOBS[name])).exit_code == 0
    result = marco("export", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "out" / "jobs.jsonl").read_text().splitlines()) == 26
    assert marco("replay", str(JOBS["weighted"]), "--reward", "path").exit_code == 0
    # The pocket model searched it, on another machine.
    again = marco("replay", str(JOBS["pocket"]), "--json")
    assert again.exit_code in (0, OTHER_ENGINE), again.output
    assert json.loads(again.output)["rollouts"] == 3


def test_what_it_began_is_ended_by_this_version_and_fits(url: str) -> None:
    """Also a job that ended once under 0.1.0: each end is checked by its own rules."""
    settings = settings_for(url, "redis://127.0.0.1:1/0", max_attempts=1)
    names = ("queued", "begun", "requeued_open")
    with psycopg.connect(url) as conn:
        conn.execute("UPDATE jobs SET lease_expires_at = now() WHERE state = 'running'")
    with open_database(url) as database:
        for name in names:
            run_job(runner(settings, database, ToyRuntime(model="toy")), database, JOBS[name])
            report = verify_job(database, JOBS[name])
            assert (report.status, report.findings) == (Status.VALID, ())
    with psycopg.connect(url) as conn:
        formats = conn.execute(
            "SELECT array_agg(format ORDER BY seq) FROM chain WHERE job_id = %s",
            [JOBS["requeued_open"]],
        ).fetchone()
    assert formats == ([1, NEWEST],)
    assert verify_all(url).findings == ()


def test_a_job_of_an_older_format_is_proved_anew_when_it_is_redacted(url: str) -> None:
    """The hashes that 0.1.0 made would let its texts be guessed: they go as well."""
    with open_database(url) as database:
        for name in ("weighted", "dead", "translation"):
            with database.transaction() as conn:
                assert redactions.redact(conn, JOBS[name]) is not None
            report = verify_job(database, JOBS[name])
            assert (report.status, report.proved, report.findings) == (Status.REDACTED, False, ())
        with pytest.raises(RedactionRefused, match="archive"), database.transaction() as conn:
            redactions.redact(conn, JOBS["archived"])
    whole = verify_all(url)
    assert (whole.findings, whole.redacted_jobs) == ((), 3)
    assert "proved since its redaction only" in marco("verify", str(JOBS["weighted"])).output
    with psycopg.connect(url) as conn:
        conn.execute("SET session_replication_role = replica")
        conn.execute("UPDATE rollouts SET value = value / 2 WHERE job_id = %s", [JOBS["weighted"]])
    assert verify_all(url).findings != ()


LATE = "INSERT INTO audit_log (job_id, event, detail, at) VALUES (%(job)s, "
TAMPERINGS = [
    ("weighted", "UPDATE nodes SET text = text || '!' WHERE job_id = %(job)s AND node_id = 1",
     "nodes"),
    ("weighted", "UPDATE nodes SET logprobs[1] = logprobs[1] - 1e-6 WHERE job_id = %(job)s"
     " AND node_id = 2", "nodes"),
    ("best", "UPDATE rollouts SET value = value / 2 WHERE job_id = %(job)s AND rollout_id = 0",
     "rollouts"),
    ("vote", "UPDATE answers SET votes = votes + 1 WHERE job_id = %(job)s AND rank = 1",
     "answers"),
    ("open_ended", "UPDATE answers SET rollout_ids = rollout_ids[2:] WHERE job_id = %(job)s"
     " AND rank = 1", "answers"),
    ("resumed", "DELETE FROM attempts WHERE job_id = %(job)s AND generation = 1", "attempts"),
    ("translation", "UPDATE jobs SET payload = payload || '{\"priority\": \"low\"}'"
     " WHERE id = %(job)s", "jobs"),
    ("queued", "UPDATE jobs SET payload = payload || '{\"question\": \"9?\"}' WHERE id = %(job)s",
     "jobs"),
    ("dead", "DELETE FROM audit_log WHERE job_id = %(job)s AND event = 'claimed'", "audit_log"),
    ("archived", "DELETE FROM audit_log WHERE job_id = %(job)s AND event = 'submitted'",
     "audit_log"),
    ("failed", "DELETE FROM chain WHERE job_id = %(job)s", "chain"),
    ("failed", "UPDATE chain SET format = 2 WHERE job_id = %(job)s", "chain"),
    ("expired", "DELETE FROM jobs WHERE id = %(job)s", "jobs"),
    # What came after the end.
    ("vote", LATE + "'requeued', '{}', now())", "audit_log"),
    ("dead", LATE + "'requeued', '{}', now())", "audit_log"),
    ("vote", LATE + "'archived', '{\"month\": \"2026-11\"}', now())", "audit_log"),
    ("vote", LATE + "'claimed', '{}', now())", "audit_log"),
    ("vote", LATE + "'published', '{\"approved_by\": \"an auditor\"}', now())", "audit_log"),
    ("vote", LATE + "'published', '{}', '2020-01-01')", "audit_log"),
    ("archived", LATE + "'archived', '{}', now())", "audit_log"),
    ("archived", "UPDATE audit_log SET at = at - interval '1 y' WHERE job_id = %(job)s"
     " AND event = 'archived'", "audit_log"),
    ("archived", "UPDATE audit_log SET detail = detail || '{\"by\": \"me\"}'"
     " WHERE job_id = %(job)s AND event = 'archived'", "audit_log"),
]  # fmt: skip


def test_tampering_with_it_is_found(url: str) -> None:
    missed = []
    with open_database(url) as database, database.connect() as conn:
        for name, statement, table in TAMPERINGS:
            with conn.transaction(force_rollback=True):
                conn.execute("SET LOCAL session_replication_role = replica")
                changed = conn.execute(statement.encode(), {"job": JOBS[name]}).rowcount
                assert changed > 0, statement
                found = [f for report in check_range(conn, None, None) for f in report.findings]
            if not found or (found[0].table, found[0].job_id) != (table, JOBS[name]):
                missed.append((name, statement, [str(f) for f in found]))
    assert missed == []
