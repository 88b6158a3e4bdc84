"""Redaction: texts are gone for good, everything else is still proved, and so is the redaction."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result
from starlette.testclient import TestClient

from marco_search import settings as settings_module
from marco_search import tracing
from marco_search.audit.findings import Status
from marco_search.cli.main import cli
from marco_search.console.access import Access
from marco_search.console.app import create_app
from marco_search.console.reader import Reader
from marco_search.errors import InvalidJob, RedactionRefused, RightsMissing, RuntimeUnavailable
from marco_search.evaluation.data_sets import from_row
from marco_search.evaluation.run import Recipe, run_queued
from marco_search.export import otlp
from marco_search.export.tables import Filter
from marco_search.store import uploaded_files
from marco_search.store.db import Conn, Database
from marco_search.store.queue import dead_letters, jobs
from marco_search.store.reads import job_record
from marco_search.store.seal import redactions
from marco_search.store.seal.verification import verify_all, verify_job
from producer import Producer
from tests.integration.logins import logins
from tests.integration.toys import (
    Interrupted,
    insert,
    open_database,
    question,
    run_job,
    runner,
    settings_for,
)
from tests.toy import ToyRuntime

SECRET = "Zaphod"
ABOUT = {
    "expected": "2",
    "metadata": {"customer": SECRET, "number": 4711},
    "system_prompt": f"You help {SECRET}.",
    "idempotency_key": f"key of {SECRET}",
    "options": {"rollouts": 16, "reflection": "branch"},
}
TEXT = f"{SECRET} has 1 and 1 more: how many?"
TABLES = ("jobs", "attempts", "audit_log", "nodes", "rollouts", "answers", "proofs", "redactions")


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    settings_module.load.cache_clear()
    with open_database(database_url) as opened:
        yield opened
    settings_module.load.cache_clear()


@pytest.fixture
def ended(database: Database, database_url: str) -> UUID:
    """A job with a secret in every text, which has ended; and another."""
    (job,) = insert(database, question(TEXT, **ABOUT))
    (other,) = insert(database, question("Another?"))
    run(database, database_url, job.id, ToyRuntime((SECRET, "2", "3"), failing=0.1))
    run(database, database_url, other.id, ToyRuntime())
    return job.id


def run(database: Database, url: str, job_id: UUID, runtime: ToyRuntime) -> None:
    settings = settings_for(url, "redis://127.0.0.1:1/0", max_attempts=1)
    run_job(runner(settings, database, runtime), database, job_id)


def redact(database: Database, job_id: UUID) -> None:
    with database.transaction() as conn:
        assert redactions.redact(conn, job_id, reason="asked for") is not None


def marco(*words: str) -> Result:
    result = CliRunner().invoke(cli, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def everything(url: str, job_id: UUID) -> str:
    """All that the tables have, as text."""
    with psycopg.connect(url) as conn:
        parts = []
        for table in TABLES:
            query = f"SELECT t::text FROM {table} AS t"  # noqa: S608  # constants
            parts += conn.execute(query.encode()).fetchall()
    return "\n".join(str(part) for part in parts)


def test_texts_are_gone_and_the_rest_is_proved_as_before(
    database: Database, database_url: str, ended: UUID
) -> None:
    before = verify_all(database_url)
    assert before.findings == ()
    assert SECRET in everything(database_url, ended)
    report = verify_job(database, ended)
    redact(database, ended)
    assert SECRET not in everything(database_url, ended)
    after = verify_all(database_url)
    assert after.findings == ()
    assert (after.redacted_jobs, after.links) == (1, before.links + 1)
    assert (after.nodes, after.rollouts) == (before.nodes, before.rollouts)
    found = verify_job(database, ended)
    assert (found.status, found.proved, found.nodes) == (Status.REDACTED, True, report.nodes)
    with database.transaction() as conn:
        assert redactions.redact(conn, ended) is None  # once is enough


def test_whoever_reads_it_is_told(database: Database, ended: UUID, tmp_path: object) -> None:
    assert marco("redact", str(ended), "--yes", "--reason", "request 17").exit_code == 0
    assert "1 redacted" in marco("verify").output
    assert "redacted" in marco("show", str(ended)).output
    shown = [("show", str(ended), "--format", form) for form in ("html", "svg", "json", "mermaid")]
    for words in (
        ("show", str(ended), "--json"),
        ("results", str(ended)),
        ("status", str(ended)),
        ("sql", "select * from audit.forks"),
        ("export", f"{tmp_path}/otlp", "--format", "otlp-json"),
        *shown,
    ):
        result = marco(*words)
        assert result.exit_code == 0, result.output
        assert SECRET not in result.output
    assert marco("export", f"{tmp_path}/out").exit_code == 0
    with pytest.raises(InvalidJob, match="redacted"), database.transaction() as conn:
        job_record.stored_search(conn, ended)
    assert "was redacted before" in marco("redact", str(ended), "--yes").output


def test_its_page_says_who_redacted_it_and_shows_no_placeholder_as_its_answer(
    database: Database, ended: UUID
) -> None:
    assert marco("redact", str(ended), "--yes", "--reason", "request 17").exit_code == 0
    client = TestClient(create_app(Reader(database), Access(None)), base_url="http://localhost")
    page = client.get(f"/jobs/{ended}")
    assert page.status_code == 200
    with database.transaction() as conn:
        (who,) = conn.execute("SELECT by FROM redactions").fetchone() or ("nobody",)
    assert re.search(rf"Redacted [^<]+ by {who}: request 17", page.text)
    assert SECRET not in page.text
    assert '<p class="answer"' not in page.text
    assert client.get(f"/jobs/{ended}/tree.json").status_code == 200


def test_a_redacted_job_of_a_callers_trace_is_exported_as_one_of_its_own(
    database: Database, database_url: str
) -> None:
    with tracing.within("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"):
        (job,) = insert(database, question(TEXT))
    run(database, database_url, job.id, ToyRuntime())

    def ids() -> set[int]:
        with database.snapshot() as conn:
            (spans,) = otlp.traces(conn, Filter())
        return {span.context.trace_id for span in spans}

    assert ids() == {0x0AF7651916CD43DD8448EB211C80319C}
    marco("redact", "--yes", str(job.id))
    assert ids() == {job.id.int}


@pytest.mark.parametrize("uploaded", [True, False])
def test_jobs_and_refused_lines_are_chosen_by_batch_and_custom_id(
    database: Database, database_url: str, uploaded: bool
) -> None:
    line = {"kind": "reasoning", "custom_id": f"case {SECRET}", "question": TEXT}
    wrong = [line | {SECRET: 1}, line | {"custom_id": "other", SECRET: 1}]
    with Producer(settings=settings_for(database_url, "redis://127.0.0.1:1/0")) as producer:
        lines = [json.dumps(each).encode() for each in (line, *wrong)]
        batch = producer.submit_batch(lines, metadata={"for": SECRET}, source=f"{SECRET}.jsonl")
    if uploaded:
        with database.transaction() as conn:
            data = io.BytesIO(b"".join(lines))
            file = uploaded_files.store(
                conn, data, tenant=batch.tenant, name=SECRET, expires_in_s=3600, most=9999
            )
            conn.execute("UPDATE batches SET file_id = %s", [file.id])
    run(database, database_url, producer_jobs(database)[0], ToyRuntime())
    words = ("redact", "--yes", "--json")

    def texts() -> str:
        with database.transaction() as conn:
            query = (
                "SELECT (SELECT b::text FROM batches AS b), (SELECT f::text FROM files AS f),"
                " (SELECT count(*) FROM file_parts), array_agg(l) FROM batch_lines AS l"
            )
            return str(conn.execute(query).fetchone())

    by_name = ("--custom-id", f"case {SECRET}")
    assert json.loads(marco(*words, *by_name, "--tenant", "another").output)["jobs"] == []
    before = texts()
    kept = CliRunner().invoke(cli, ["redact", *by_name], input="n\n")
    assert (str(kept.exception), texts()) == ("nothing was changed", before)
    asked = CliRunner().invoke(cli, ["redact", "--json", *by_name], input="y\n")
    done = json.loads(asked.stdout)
    assert "Replace all texts" in asked.stderr
    assert (len(done["jobs"]), done["lines"]) == (1, 1)
    assert f"case {SECRET}" not in texts()
    assert SECRET in texts()
    done = json.loads(marco(*words, "--batch", str(batch.id)).output)
    assert (done["jobs"], done["lines"]) == ([], 1)
    assert SECRET not in texts()
    assert json.loads(marco(*words, "--batch", str(batch.id)).output)["lines"] == 0
    assert verify_all(database_url).findings == ()


def producer_jobs(database: Database) -> list[UUID]:
    with database.transaction() as conn:
        return [row[0] for row in conn.execute("SELECT id FROM jobs")]


def test_jobs_are_chosen_by_their_metadata(database: Database, ended: UUID) -> None:
    words = ("redact", "--metadata", f"customer={SECRET}", "--metadata", "number=4711", "--yes")
    found = json.loads(marco(*words, "--json").output)
    assert [one["job_id"] for one in found["jobs"]] == [str(ended)]
    assert "No jobs match" in marco(*words).output


def test_an_evaluation_does_not_grade_what_stands_in_the_place_of_an_answer(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    class RedactedMeanwhile(Producer):
        def results(self, jobs: Any, **more: Any) -> Any:  # type: ignore[override]
            for job in jobs:
                run(database, database_url, job.id, ToyRuntime())
                redact(database, job.id)
            return super().results(jobs, **more)

    problem = from_row({"question": TEXT, "answer": "2"}, "row")
    settings = settings_for(database_url, "redis://127.0.0.1:1/0")
    with (
        RedactedMeanwhile(settings=settings) as producer,
        pytest.raises(RuntimeUnavailable, match="redacted"),
    ):
        run_queued([problem], Recipe(), tmp_path / "traces.jsonl", producer)
    assert (tmp_path / "traces.jsonl").read_text() == ""


def test_its_idempotency_key_may_name_another_request(database: Database, ended: UUID) -> None:
    redact(database, ended)
    (again,) = insert(database, question("Something else?", idempotency_key=f"key of {SECRET}"))
    assert again.created


def test_a_job_that_may_still_run_is_refused(database: Database, database_url: str) -> None:
    queued, dead = insert(database, question(), question(TEXT))
    with pytest.raises(RedactionRefused, match="cancel it first"), database.transaction() as conn:
        redactions.redact(conn, queued.id)

    def gone() -> None:
        raise RuntimeUnavailable(f"{SECRET} is gone")

    run(database, database_url, dead.id, Interrupted(1, gone))
    redact(database, dead.id)
    with database.transaction() as conn:
        assert dead_letters.requeue(conn, [dead.id]) == []
    assert SECRET not in everything(database_url, dead.id)
    assert verify_all(database_url).findings == ()


def test_a_key_that_is_redacted_while_it_is_submitted_again_is_free(
    database: Database, ended: UUID
) -> None:
    class Between:
        """A connection, and what another one does before it looks for the job of the key."""

        def __init__(self, conn: Conn) -> None:
            self.conn = conn

        def execute(self, query: Any, given: Any) -> Any:
            if "JOIN unnest" in str(query):
                redact(database, ended)
            return self.conn.execute(query, given)

    with database.transaction() as conn:
        again = question(TEXT, **ABOUT)
        (handle,) = jobs.insert(cast(Conn, Between(conn)), [again], tenant="default")
    assert handle.created
    assert handle.id != ended


def test_where_it_stops_it_says_how_many_are_redacted(database: Database, ended: UUID) -> None:
    (queued,) = insert(database, question())
    result = CliRunner().invoke(cli, ["redact", "--yes", str(ended), str(queued.id)])
    assert "cancel it first" in str(result.exception)
    assert "1 of 2 jobs are redacted" in str(result.exception)
    assert verify_job(database, ended).redacted


def test_only_a_redactor_may(database: Database, database_url: str, ended: UUID) -> None:
    with logins(database_url) as login:
        for role in ("marco_app", "marco_auditor_all"):
            with open_database(login(role)) as theirs, pytest.raises(RightsMissing, match="redact"):
                redact(theirs, ended)
        assert verify_job(database, ended).status is Status.VALID
        with open_database(login("marco_redactor")) as theirs:
            redact(theirs, ended)
            with pytest.raises(psycopg.errors.InsufficientPrivilege), theirs.connect() as conn:
                conn.execute("UPDATE rollouts SET value = 1")
            with pytest.raises(psycopg.errors.RestrictViolation), theirs.connect() as conn:
                conn.execute("UPDATE nodes SET text = ''")
        assert verify_job(database, ended).status is Status.REDACTED


def test_what_was_changed_before_is_not_hidden(
    database: Database, database_url: str, ended: UUID
) -> None:
    tamper(database_url, "UPDATE nodes SET text = 'x' WHERE node_id = 1", ended)
    with pytest.raises(RedactionRefused, match="does not verify"):
        redact(database, ended)
    assert SECRET in everything(database_url, ended)


def tamper(url: str, statement: str, job_id: UUID) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("SET session_replication_role = replica")
        assert conn.execute(statement.encode(), {"job": job_id}).rowcount > 0, statement


EARLIER = [
    "UPDATE nodes SET text = '[redacted 0123456789abcdef]' WHERE job_id = %(job)s AND node_id = 1",
    "UPDATE jobs SET salt = NULL WHERE id = %(job)s",
    "UPDATE jobs SET redacted_at = now() WHERE id = %(job)s",
    "UPDATE jobs SET redacted_at = 'infinity' WHERE id = %(job)s",
    "INSERT INTO redactions (job_id, commitments) VALUES (%(job)s, '')",
    "INSERT INTO redactions (job_id, commitments) VALUES (gen_random_uuid(), '')",
    "INSERT INTO audit_log (job_id, event) VALUES (%(job)s, 'redacted')",
    "INSERT INTO chain SELECT seq + 1, 'redaction', job_id, root, head, head, at, format FROM chain"
    " ORDER BY seq DESC LIMIT 1",
]
LATER = [
    "UPDATE nodes SET text = 'x' WHERE job_id = %(job)s AND node_id = 1",
    "UPDATE nodes SET logprobs[1] = logprobs[1] - 1e-6 WHERE job_id = %(job)s AND node_id = 2",
    "UPDATE answers SET votes = votes + 1 WHERE job_id = %(job)s AND rank = 1",
    'UPDATE jobs SET payload = payload || \'{"question": "x"}\' WHERE id = %(job)s',
    "UPDATE jobs SET salt = gen_random_uuid() WHERE id = %(job)s",
    "UPDATE jobs SET redacted_at = NULL WHERE id = %(job)s",
    "UPDATE jobs SET redacted_at = redacted_at + interval '1 us' WHERE id = %(job)s",
    "UPDATE redactions SET at = at - interval '1 day' WHERE job_id = %(job)s",
    "UPDATE redactions SET at = '-infinity' WHERE job_id = %(job)s",
    "UPDATE redactions SET by = 'another' WHERE job_id = %(job)s",
    "UPDATE redactions SET commitments = '' WHERE job_id = %(job)s",
    "DELETE FROM redactions WHERE job_id = %(job)s",
    "DELETE FROM audit_log WHERE job_id = %(job)s AND event = 'redacted'",
    "DELETE FROM chain WHERE job_id = %(job)s AND kind = 'redaction'",
    "DELETE FROM proofs USING chain AS c WHERE c.seq = proofs.seq AND kind = 'job'"
    " AND c.job_id = %(job)s",
    "DELETE FROM nodes WHERE job_id = %(job)s AND node_id = 1",
    "INSERT INTO audit_log (job_id, event) VALUES (%(job)s, 'redacted')",
]


@pytest.mark.parametrize(
    ("statement", "redacted"),
    [*((statement, False) for statement in EARLIER), *((statement, True) for statement in LATER)],
)
def test_a_forged_redaction_is_found(
    database: Database, database_url: str, ended: UUID, statement: str, redacted: bool
) -> None:
    if redacted:
        redact(database, ended)
    tamper(database_url, statement, ended)
    assert verify_all(database_url).findings != ()


def test_texts_that_a_redactor_wrote_are_found(
    database: Database, database_url: str, ended: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed properly, and by somebody who may."""
    texts = redactions.row_without_texts

    def false(row: dict[str, Any], salt: bytes) -> dict[str, Any]:
        return texts(row, salt) | ({"thought": "They said 3."} if "thought" in row else {})

    monkeypatch.setattr(redactions, "row_without_texts", false)
    redact(database, ended)
    found = verify_all(database_url).findings
    assert any("what a redaction leaves" in finding.expected for finding in found)
