"""Archives: months leave the database with their proofs, and everything still verifies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Self
from uuid import UUID

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from marco_search import settings as settings_module
from marco_search.audit.findings import Status
from marco_search.cli import audit_commands
from marco_search.cli.audit_commands import archive, redact, verify
from marco_search.cli.job_commands import show
from marco_search.errors import ArchiveRefused, RedactionRefused, RuntimeUnavailable
from marco_search.export import archive as files
from marco_search.export.tables import Filter
from marco_search.kinds import completions
from marco_search.learning import build, duplicates, origins, samples
from marco_search.learning.traces import Rules
from marco_search.store.db import Conn, Database
from marco_search.store.queue import dead_letters, jobs
from marco_search.store.reads import queries
from marco_search.store.seal import archives, redactions
from marco_search.store.seal.verification import check_range, verify_all, verify_job
from marco_search.store.trail import partitions
from tests.integration.toys import (
    Interrupted,
    insert,
    open_database,
    question,
    runner,
    settings_for,
    wait_until,
)
from tests.toy import ToyRuntime


def jobs_requeued(conn: Conn, job_id: UUID) -> list[UUID]:
    return dead_letters.requeue(conn, [job_id])


def months_of(database: Database) -> list[archives.Month]:
    with database.transaction() as conn:
        return archives.months(conn, datetime(2026, 9, 1, tzinfo=UTC))


AUGUST = partitions.lower_bound(datetime(2026, 8, 1, tzinfo=UTC))


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database with partitions for August 2026, which the command line uses."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    settings_module.load.cache_clear()
    with psycopg.connect(database_url) as conn:
        for table in ("nodes", "rollouts", "answers", "audit_log"):
            conn.execute("SELECT make_partition(%s, %s, '2026-08-01')", [table, f"{table}_2026_08"])
    with open_database(database_url) as opened:
        yield opened
    settings_module.load.cache_clear()


@pytest.fixture
def august(database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """Three jobs of August, one of them dead, and one of today."""
    ids = [UUID(int=AUGUST.int + (7 << 76) + (2 << 62) + i) for i in range(3)]
    given = iter(ids)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "new_job_id", lambda: next(given))
        insert(database, *[question(options={"seed": i, "reflection": "branch"}) for i in range(3)])
    insert(database, question())
    settings = settings_for(database_url, "redis://127.0.0.1:1/0", max_attempts=1)
    with database.transaction() as conn:
        everything = [row[0] for row in conn.execute("SELECT id FROM jobs ORDER BY id")]
    for job_id in everything:
        runtime = ToyRuntime()
        if job_id == ids[2]:
            runtime = Interrupted(1, gone)
        runner(settings, database, runtime).run_next()
    return ids


def gone() -> None:
    raise RuntimeUnavailable("gone")


def gone_too(*_: object) -> None:
    raise RuntimeUnavailable("gone")


def run(*words: str) -> Result:
    return CliRunner().invoke(archive, words)


def done(folder: Path) -> Path:
    result = run(str(folder), "--before", "2026-09")
    assert result.exception is None, result.output
    return folder / "2026-08"


def test_a_month_moves_out_and_all_that_remains_still_fits(
    database: Database, database_url: str, august: list[UUID], tmp_path: Path
) -> None:
    before = verify_all(database_url)
    dry = run(str(tmp_path), "--before", "2026-09", "--dry-run")
    assert "2026-08: jobs: 3" in dry.output
    assert list(tmp_path.iterdir()) == []
    month = done(tmp_path)
    assert pq.read_table(month / "node.parquet").num_rows > 20
    after = verify_all(database_url)
    assert after.findings == ()
    assert (after.jobs, after.archived_jobs, after.links) == (4, 3, before.links + 1)
    assert 0 < after.nodes < before.nodes
    assert verify_job(database, august[0]).status is Status.ARCHIVED
    checked = CliRunner().invoke(verify, ["--archive", str(month), "--json"])
    assert checked.exit_code == 0
    report = json.loads(checked.output)
    assert (report["jobs"], report["nodes"]) == (3, before.nodes - after.nodes)
    with database.transaction() as conn:
        events = conn.execute("SELECT job_id FROM audit_log WHERE event = 'archived' ORDER BY id")
        assert [row[0] for row in events] == august
        # A dead job without its rounds can't go on.
        assert dead_letters.requeue(conn, august) == []
    again = run(str(tmp_path), "--before", "2026-09")
    assert "No month" in again.output
    shown = CliRunner().invoke(show, [str(august[0])])
    assert "are in the archive of 2026-08" in shown.output
    assert "no answer" not in shown.output
    with database.transaction() as conn:
        everything = [row[0] for row in conn.execute("SELECT id FROM jobs ORDER BY id")]
        *_, mine = found = sorted(queries.results(conn, everything), key=lambda r: r.job_id or "")
    assert [r.archived for r in found] == ["2026-08"] * 3 + [None]
    for result, answered in ((found[0], False), (mine, True)):
        line = completions.response(result)
        assert [line["error"] is None, line["response"] is not None] == [answered] * 2


def test_what_was_made_of_an_archived_tree_is_known_and_nothing_new_is_made_of_it(
    database: Database, august: list[UUID], tmp_path: Path
) -> None:
    wanted = Rules(least_share=0, reflection="kept")
    with duplicates.rules(None) as rules:
        build.from_traces(database, tmp_path / "before", Filter(), wanted, rules=rules)
    done(tmp_path / "archive")
    sample = next(samples.read(tmp_path / "before"))
    assert sample.provenance["job"] in map(str, august)
    with database.snapshot() as conn:
        (origin,) = origins.trace(conn, sample.id, None)
    assert (str(origin.job), origin.status) == (sample.provenance["job"], "archived")
    assert (origin.manifest_holds, origin.unchanged, origin.holds) == (True, None, True)
    manifest = build.from_traces(database, tmp_path / "after", Filter(), wanted, rules={})
    assert manifest["counts"]["dropped"] == {"archived": 2, "unfinished": 1}
    assert manifest["counts"]["out"] == 1


def test_a_redacted_job_moves_out_with_the_others(
    database: Database, database_url: str, august: list[UUID], tmp_path: Path
) -> None:
    with database.transaction() as conn:
        redactions.redact(conn, august[0])
    month = done(tmp_path)
    result = CliRunner().invoke(verify, ["--archive", str(month), "--json"])
    report = json.loads(result.output)
    assert (report["ok"], report["jobs"], report["redacted_jobs"]) == (True, 3, 1)
    after = verify_all(database_url)
    assert (after.findings, after.redacted_jobs, after.archived_jobs) == ((), 1, 3)
    with pytest.raises(RedactionRefused, match="--archive"), database.transaction() as conn:
        redactions.redact(conn, august[1])


def test_jobs_of_an_archived_month_are_redacted_in_its_files(
    database: Database,
    database_url: str,
    august: list[UUID],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    month = done(tmp_path)
    words = [str(august[0]), str(august[2]), "--yes", "--archive", str(tmp_path), "--json"]
    with monkeypatch.context() as patch:  # killed before the transaction is committed
        patch.setattr(archives, "chain", gone_too)
        assert CliRunner().invoke(redact, words).exit_code != 0
    assert verify_all(database_url).redacted_jobs == 0
    with monkeypatch.context() as patch:  # and right after
        patch.setattr(Path, "rename", gone_too)
        assert CliRunner().invoke(redact, words).exit_code != 0
    assert verify_all(database_url).redacted_jobs == 2
    result = CliRunner().invoke(redact, words)
    assert result.exit_code == 0, result.output
    assert [one["link"] for one in json.loads(result.output)["jobs"]] == [None, None]
    assert not files.beside(month).exists()
    for name in ("node", "request", "rollout", "answer", "outcome", "attempt"):
        found = {
            row["id" if "id" in row else "job_id"]
            for row in pq.read_table(month / f"{name}.parquet").to_pylist()
            if "[redacted " in str(row)
        }
        assert found <= {str(august[0]), str(august[2])}
        assert found
    report = json.loads(CliRunner().invoke(verify, ["--archive", str(month), "--json"]).output)
    assert (report["ok"], report["jobs"], report["redacted_jobs"]) == (True, 3, 2)
    after = verify_all(database_url)
    assert (after.findings, after.redacted_jobs, after.archived_jobs) == ((), 2, 3)


def bring_into_line(month: Path) -> None:
    """Write the hash of the file of nodes into the list."""
    from marco_search.files import digest

    manifest = json.loads((month / "manifest.json").read_text())
    manifest["files"]["node.parquet"]["sha256"] = digest(month / "node.parquet")
    (month / "manifest.json").write_text(json.dumps(manifest, indent=2))


def test_tampering_with_an_archive_is_found(
    database: Database, august: list[UUID], tmp_path: Path
) -> None:
    month = done(tmp_path)
    table = pq.read_table(month / "node.parquet")
    texts = table["text"].to_pylist()
    at = table.schema.get_field_index("text")
    edited = table.set_column(at, table.schema.field(at), [["doctored", *texts[1:]]])
    pq.write_table(edited, month / "node.parquet")
    result = CliRunner().invoke(verify, ["--archive", str(month)])
    assert (result.exit_code, "node.parquet" in result.output) == (9, True)
    # Its list brought into line, the row is named; and the chain does not know the list.
    bring_into_line(month)
    result = CliRunner().invoke(verify, ["--archive", str(month)])
    assert result.exit_code == 9
    assert "the chain knows no archive with this list" in result.output
    assert f"nodes (job {august[0]}, node_id 1): the node was changed" in result.output


def test_a_time_that_no_calendar_has_makes_an_archive_unreadable(
    august: list[UUID], tmp_path: Path
) -> None:
    month = done(tmp_path)
    table = pq.read_table(month / "node.parquet")
    at = table.schema.get_field_index("created_at")
    late = pa.array([2**62] * len(table), table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), late), month / "node.parquet")
    bring_into_line(month)
    result = CliRunner().invoke(verify, ["--archive", str(month)])
    assert (result.exit_code, "not readable" in result.output) == (9, True)


def test_trees_that_vanish_do_not_pass_for_archived(
    database: Database, database_url: str, august: list[UUID]
) -> None:
    with psycopg.connect(database_url) as conn:
        conn.execute("DROP TABLE partitions.nodes_2026_08")
    found = verify_all(database_url).findings
    assert (found[0].table, found[0].job_id) == ("nodes", august[0])


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "sub"])
def test_a_file_beside_an_archives_own_is_named(
    database: Database, august: list[UUID], tmp_path: Path, name: str
) -> None:
    month = done(tmp_path)
    if name == "sub":
        (month / name).mkdir()
    else:
        (month / name).write_text("the answer was 7")
    result = CliRunner().invoke(verify, ["--archive", str(month), "--json"])
    report = json.loads(result.output)
    assert (result.exit_code, report["jobs"]) == (9, 3)
    assert [f["key"] for f in report["findings"]] == [name]


def test_two_at_once_do_not_write_over_each_other(
    database: Database,
    database_url: str,
    august: list[UUID],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = months_of(database)
    month = done(tmp_path)
    kept = {file.name: file.read_bytes() for file in month.iterdir()}
    looked = iter([found])
    now = archives.months
    monkeypatch.setattr(
        archives, "months", lambda conn, until: next(looked, None) or now(conn, until)
    )
    late = run(str(tmp_path), "--before", "2026-09")  # it looked before the other was done
    assert "another command has archived it" in str(late.exception)
    assert {file.name: file.read_bytes() for file in month.iterdir()} == kept
    assert verify_all(database_url).findings == ()

    command = [sys.executable, "-m", "marco_search.cli.main", "redact", "--yes", "--archive"]
    with files.alone(tmp_path):
        waiting = subprocess.Popen([*command, str(tmp_path), str(august[0])])
        wait_until(lambda: locked(tmp_path) == waiting.pid, "the other waits for its turn")
        assert {file.name: file.read_bytes() for file in month.iterdir()} == kept
    assert waiting.wait(120) == 0
    assert verify_all(database_url).redacted_jobs == 1


def test_an_archive_of_another_database_is_not_written_over(
    database: Database, august: list[UUID], tmp_path: Path
) -> None:
    (month,) = months_of(database)
    about = {"format": "marco-archive 3", "database": "0" * 64, "name": month.name, "files": {}}
    theirs = json.dumps(about | {"first": str(month.first), "before": str(month.before)})
    file = tmp_path / month.name / "manifest.json"
    file.parent.mkdir()
    file.write_text(theirs)
    result = run(str(tmp_path), "--before", "2026-09")
    assert "an archive of another database" in str(result.exception)
    assert file.read_text() == theirs and [file] == list(file.parent.iterdir())
    assert months_of(database) == [month]


def test_a_month_must_be_over_by_the_clock_of_the_database(
    database: Database, august: list[UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(2200, 1, 1, tzinfo=tz)

    monkeypatch.setattr(audit_commands, "datetime", Ahead)
    result = run(str(tmp_path), "--before", "2199-01")
    assert "is in the future" in str(result.exception)
    assert len(months_of(database)) == 1


def locked(folder: Path) -> int | None:
    """The process that waits for the lock of a folder."""
    inode = f":{folder.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return next((int(line.split()[5]) for line in lines if "->" in line and inode in line), None)


@pytest.mark.parametrize("step", [redactions.redact, jobs_requeued])
def test_what_waits_for_an_archive_sees_it(
    database: Database, august: list[UUID], tmp_path: Path, step: Callable[[Conn, UUID], object]
) -> None:
    """A month is dropped while another wants to change one of its jobs."""
    (month,) = months_of(database)
    with database.snapshot() as conn:
        manifest = files.write(conn, month, tmp_path / month.name)

    def change() -> object:
        with database.transaction() as conn:
            return step(conn, august[2])

    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as conn:
            archives.drop(conn, month, manifest)
            waiting = pool.submit(change)
            blocked = "SELECT FROM pg_locks WHERE NOT granted"
            wait_until(lambda: conn.execute(blocked).rowcount > 0, "the other waits")
        if step is jobs_requeued:
            assert waiting.result(60) == []
        else:
            with pytest.raises(RedactionRefused, match="its tree is in an archive"):
                waiting.result(60)


def test_an_archive_waits_for_who_reads_and_does_not_take_the_trees_from_under_them(
    database: Database, august: list[UUID], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with database.snapshot() as conn:
            archiving = pool.submit(done, tmp_path)
            with database.connect() as other:
                blocked = "SELECT FROM pg_locks WHERE NOT granted"
                wait_until(lambda: other.execute(blocked).rowcount > 0, "the archive waits")
            reports = list(check_range(conn, None, None))
        archiving.result(60)
    assert [report.findings for report in reports] == [()] * 4
    assert not any(report.status is Status.ARCHIVED for report in reports)
    assert verify_job(database, august[0]).status is Status.ARCHIVED


def test_what_has_not_ended_or_does_not_fit_stays(
    database: Database, database_url: str, august: list[UUID], tmp_path: Path
) -> None:
    with database.transaction() as conn:
        assert len(dead_letters.requeue(conn, [august[2]])) == 1
    result = run(str(tmp_path), "--before", "2026-09")
    assert isinstance(result.exception, ArchiveRefused)
    assert "not all jobs have ended (1 left" in str(result.exception)
    with database.transaction() as conn:
        jobs.cancel(conn, [august[2]])
    # It has rounds, so a worker ranks what there is.
    settings = settings_for(database_url, "redis://127.0.0.1:1/0")
    runner(settings, database, ToyRuntime()).run_next()
    with psycopg.connect(database_url) as doctored:
        doctored.execute("SET session_replication_role = replica")
        doctored.execute("UPDATE nodes SET text = 'x' WHERE job_id = %s", [august[0]])
    result = run(str(tmp_path), "--before", "2026-09")
    assert "is not archived: nodes" in str(result.exception)
    with psycopg.connect(database_url) as conn:
        row = conn.execute("SELECT count(*) FROM partitions.nodes_2026_08").fetchone()
    assert row is not None
    assert row[0] > 0
