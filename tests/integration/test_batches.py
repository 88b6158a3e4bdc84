"""A file is a batch: uploaded in parts, answered line by line, cancelled and taken up again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from marco_search import settings
from marco_search.cli.main import main
from marco_search.errors import InvalidJob, QueueFull
from marco_search.kinds import job_from_json_line
from marco_search.store.db import Database
from marco_search.store.queue import batches, dead_letters, jobs, scheduling
from producer import Producer
from producer.uploads import Part
from tests.integration.toys import Interrupted, question, tick, wait_until
from tests.integration.toys import runner as toy_runner
from tests.pipes import piped
from tests.toy import ToyRuntime

Marco = Callable[..., str]
QUICK = {"strategy": "cot", "max_new_tokens": 64}
LINES = [
    {"custom_id": "a", "kind": "reasoning", "question": "1?", "options": QUICK,
     "metadata": {"ticket": 7}},
    {"custom_id": "wrong", "kind": "reasoning", "question": "2?", "colour": "red"},
    {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": {
        "model": "any", "max_completion_tokens": 64, "marco": {"options": {"strategy": "cot"}},
        "messages": [{"role": "system", "content": "Be brief."},
                     {"role": "user", "content": "3?"}]}},
    {"custom_id": "c", "url": "/v1/chat/completions", "body": {"messages": [], "tools": [{}]}},
]  # fmt: skip


@pytest.fixture
def marco(command_line: None, capsys: pytest.CaptureFixture[str]) -> Marco:
    """Runs a command; what it printed."""

    def run(*words: str, code: int = 0) -> str:
        assert main(list(words)) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


@pytest.fixture
def producer(database_url: str, redis_url: str) -> Iterator[Producer]:
    with Producer(database_url, redis_url) as made:
        yield made


def lines(count: int) -> list[bytes]:
    texts = ({"custom_id": f"n{i}", "kind": "reasoning", "question": f"{i}?"} for i in range(count))
    return [json.dumps(text).encode() + b"\n" for text in texts]


def test_a_file_s_name_need_not_be_utf_8(marco: Marco, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff.jsonl")
    file.write_bytes(b"".join([*lines(2), b"{}\n"]))
    batch = marco("batch", "submit", str(file)).strip()
    assert Path(f"{file}.errors.jsonl").exists()
    found = json.loads(marco("batch", "status", batch, "--json"))
    assert (found["lines"], found["refused"]) == (3, 1)
    assert found["source"] == f"{tmp_path}/\\xff.jsonl"


def test_a_file_of_both_shapes_is_answered_in_its_own(
    marco: Marco, tmp_path: Path, database: Database
) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("\n\n".join(map(json.dumps, LINES)))
    assert "2 bad lines, nothing was submitted" in marco(
        "batch", "submit", str(file), "--strict", code=2
    )
    batch = marco("batch", "submit", str(file)).strip()
    errors = list(map(json.loads, Path(f"{file}.errors.jsonl").read_text().splitlines()))
    assert [(e["line"], e["custom_id"], e["field"]) for e in errors] == [
        (3, "wrong", "colour"), (7, "c", "body.tools"),
    ]  # fmt: skip
    assert "2 queued" in marco("status", "--batch", batch)
    marco("pause", "--batch", batch)
    assert "paused" in marco("status", "--batch", batch)
    marco("resume", "--batch", batch)
    marco("batch", "cancel", batch)
    assert "2 cancelled; 2 lines refused" in marco("batch", "status", batch)
    assert "2 restarted" in marco("batch", "restart", batch)
    work = toy_runner(settings.load(), database, ToyRuntime())
    for _ in range(2):
        work.run_next()
    assert "2 succeeded" in marco("batch", "watch", batch)
    marco("wait", "--batch", batch)
    plain = map(json.loads, marco("results", "--batch", batch, "--jsonl").splitlines())
    assert [line["custom_id"] for line in plain] == ["a", "b"]
    marco("results", "--batch", batch, "-o", str(out), "--question")
    assert all("question" in json.loads(line) for line in out.read_text().splitlines())
    marco("batch", "results", batch, "-o", str(out), "--question")
    ours, theirs = map(json.loads, out.read_text().splitlines())
    assert (ours["custom_id"], ours["batch_line"], ours["batch_id"]) == ("a", 1, batch)
    assert (ours["metadata"], ours["question"]) == ({"ticket": 7}, "1?")
    assert (theirs["custom_id"], theirs["error"]) == ("b", None)
    body = theirs["response"]["body"]
    assert body["choices"][0]["message"]["content"]
    assert body["object"] == "chat.completion"


def test_an_upload_that_was_cut_off_goes_on(database_url: str, redis_url: str) -> None:
    given = lines(1200)

    def cut_off() -> Iterator[bytes]:
        yield from given[:700]
        raise KeyboardInterrupt

    with Producer(database_url, redis_url) as producer:
        with pytest.raises(KeyboardInterrupt):
            producer.submit_batch(cut_off(), source="file")
        (half,) = producer.batches()
        assert (half.lines, half.completed_at) == (500, None)
        with pytest.raises(InvalidJob, match="have changed"):
            producer.submit_batch(given[1:], source="file")
        with pytest.raises(InvalidJob, match="have changed"):
            producer.submit_batch(given[:100], source="file")
        whole = producer.submit_batch(given, source="file")
        assert (whole.id, whole.lines, whole.states) == (half.id, 1200, {"queued": 1200})
        assert producer.submit_batch(given, batch_id=half.id) == whole
        assert producer.submit_batch(given[:1], source="file").id != half.id


def test_what_is_full_or_known_stops_no_batch(
    database_url: str, redis_url: str, database: Database
) -> None:
    limited = settings.load().model_copy(update={"max_queued": 600})
    with Producer(database_url, redis_url, settings=limited) as producer:
        with pytest.raises(QueueFull):
            producer.submit_batch(lines(1200), source="file")
        (half,) = producer.batches()
        assert half.states == {"queued": 500}
    with Producer(database_url, redis_url) as producer:
        job = {"kind": "reasoning", "idempotency_key": "k", "custom_id": "again"}
        first = producer.submit(job | {"question": "x?"})
        jobs: list[dict[str, Any]] = [job | {"question": "x?"}, job | {"question": "y?"}]
        texts = [json.dumps(job).encode() for job in jobs]
        done = producer.submit_batch(b + b"\n" for b in texts)
        assert (done.lines, done.refused, sum(done.states.values())) == (2, 1, 1)
        (wrong,) = producer.refused_lines(done.id)
        assert (wrong.line, wrong.custom_id) == (2, "again")
        assert wrong.reason
        assert "belongs to job" in wrong.reason
        producer.cancel(first)
        (result,) = producer.batch_results(done.id)
        assert (result.job_id, result.batch_line, result.custom_id) == (str(first), 1, "again")


def test_the_jobs_of_a_batch_are_the_same_everywhere(
    marco: Marco, producer: Producer, tmp_path: Path
) -> None:
    """Of each line the latest, and those that idempotency keys name already."""
    known = {"kind": "reasoning", "question": "known?", "idempotency_key": "k"}
    first = producer.submit(known)
    ended = producer.submit({"kind": "reasoning", "question": "elsewhere?"})
    given = [known, {"kind": "reasoning", "question": "own?"}, {"kind": "nonsense"}]
    batch = producer.submit_batch(json.dumps(line).encode() + b"\n" for line in given).id
    marco("cancel", "--batch", str(batch))
    assert producer.restart_batch(batch) == 1  # the known job was submitted elsewhere
    own = next(j for j in map(json.loads, [marco("status", "--batch", str(batch), "--json")]))
    ids = [job["job_id"] for job in own["jobs"]]
    assert (ids[0], own["counts"]) == (str(first), {"cancelled": 1, "queued": 1})
    assert set(own["notices"]) == {"no_worker"}
    assert "paused" not in json.loads(marco("batch", "status", str(batch), "--json"))["notices"]
    marco("pause", str(ended))  # is none of the batch's
    for pause in ("pause", "resume", "pause"):
        changed = json.loads(marco(pause, "--batch", str(batch), "--json"))["jobs"]
        assert [job["job_id"] for job in changed] == ids
    notices = json.loads(marco("batch", "status", str(batch), "--json"))["notices"]
    assert list(notices) == ["paused"]
    assert "paused: 1 queued" in notices["paused"]
    cancelled = json.loads(marco("cancel", "--batch", str(batch), "--json"))["jobs"]
    assert [job["job_id"] for job in cancelled] == [ids[1]]
    for words in (["watch"], ["wait"], ["batch", "watch"]):
        marco(*words, *([] if words[0] == "batch" else ["--batch"]), str(batch), code=7)
    for words in (["results", "--batch"], ["batch", "results"]):
        file = tmp_path / words[0]
        marco(*words, str(batch), "-o", str(file))
        assert [json.loads(line)["job_id"] for line in file.read_text().splitlines()] == ids
    marco("export", str(tmp_path / "out"), "--table", "jobs", "--batch", str(batch))
    jobs = (tmp_path / "out" / "jobs.jsonl").read_text().splitlines()
    assert {json.loads(line)["job_id"] for line in jobs} == set(ids)
    assert producer.restart_batch(batch) == 1
    sql = f"SELECT jobs, cancelled FROM audit.batch_usage WHERE batch_id = '{batch}'"  # noqa: S608
    assert json.loads(marco("sql", sql, "--json")) == [{"jobs": 2, "cancelled": 1}]


def test_a_file_that_is_no_json_lines_is_refused_at_once(marco: Marco, tmp_path: Path) -> None:
    file = tmp_path / "in"
    for data, said in (
        (b"\x1f\x8b\x08", "compressed by gzip: `gzip -dc FILE | marco"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed by zstd: `zstd -dc FILE | marco"),
        (b"PK\x03\x04", "a zip archive: `unzip -p FILE | marco"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a binary file"),
        (b"[{}]", "a JSON array"),
    ):
        file.write_bytes(data * 3)
        for command in (["batch", "submit"], ["submit"]):
            assert f"{file}: {said}" in marco(*command, str(file), code=2)


def test_a_pipe_is_a_batch_of_its_own(
    marco: Marco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for batch in (submitted_by_pipe(marco, LINES), submitted_by_pipe(marco, LINES[1:])):
        errors = (tmp_path / f"{batch}.errors.jsonl").read_text().splitlines()
        assert [json.loads(line)["custom_id"] for line in errors] == ["wrong", "c"]
    with piped(LINES) as pipe:
        assert "or a pipe" in marco("batch", "submit", pipe, "--strict", code=2)


def submitted_by_pipe(marco: Marco, rows: list[Any]) -> str:
    with piped(rows) as pipe:
        return marco("batch", "submit", pipe).strip()


def test_the_same_lines_at_the_same_moment_in_any_order_are_taken_one_by_one(
    producer: Producer, database: Database
) -> None:
    lines = [f'{{"kind": "reasoning", "question": "?", "idempotency_key": "{k}"}}' for k in "amz"]
    with ThreadPoolExecutor() as threads, database.transaction() as conn:
        jobs.insert(conn, [job_from_json_line(lines[1].encode(), 1)], tenant="default")
        both = []
        for some in (lines, lines[::-1]):  # both wait for it in the middle
            part = Part(0, None, one_by_one=True)
            for number, line in enumerate(some, start=1):
                part.add(number, line.encode(), {}, "")
            batch = producer._call(batches.begin, tenant="default")
            both.append(threads.submit(producer._store_part, batch, part))
        waits = "SELECT FROM pg_locks WHERE NOT granted"
        wait_until(lambda: conn.execute(waits).rowcount == 2, "two wait")
        conn.rollback()
        for one in both:
            one.result()
    assert [batch.states for batch in producer.batches()] == [{"queued": 3}, {"queued": 3}]


def test_several_jobs_are_a_batch(database_url: str, redis_url: str) -> None:
    with Producer(database_url, redis_url) as producer:
        handles = producer.submit_many([question("1?"), question("2?")])
        batch = handles[0].batch_id
        assert batch is not None
        more = producer.submit_many([question("3?")], batch_id=batch)
        assert producer.batch(batch).lines == 3
        producer.cancel_all(batch_id=batch)
        found = [(r.job_id, r.batch_line) for r in producer.batch_results(batch)]
        assert found == [(str(h), i) for i, h in enumerate([*handles, *more], start=1)]


def test_a_batch_that_gets_more_jobs_has_not_ended(database_url: str, redis_url: str) -> None:
    with Producer(database_url, redis_url) as producer:
        (handle,) = producer.submit_many([question("1?")])
        batch = handle.batch_id
        assert batch is not None
        producer.cancel(handle)
        tick(database_url, redis_url)
        assert producer.batch(batch).finished_at
        producer.submit_many([question("2?")], batch_id=batch)
        assert producer.batch(batch).finished_at is None


def test_whoever_queues_jobs_of_several_batches_again_locks_these_in_order(
    database_url: str, redis_url: str
) -> None:
    with Producer(database_url, redis_url) as producer, ThreadPoolExecutor() as threads:
        jobs = [producer.submit_many([question()])[0] for _ in range(20)]
        first = min(str(job.batch_id) for job in jobs)
        with producer._database.transaction() as conn:
            conn.execute("UPDATE jobs SET state = 'failed', finished_at = now()")
            conn.execute("UPDATE batches SET lines = lines WHERE id = %s", [first])  # moves it
        with producer._database.transaction() as conn:
            conn.execute("SELECT FROM batches WHERE id = %s FOR UPDATE", [first])
            requeued = threads.submit(producer.requeue, jobs)
            waits = "SELECT FROM pg_locks WHERE NOT granted"
            wait_until(lambda: conn.execute(waits).rowcount == 1, "it waits for the first")
            conn.execute("SELECT FROM batches WHERE id <> %s FOR UPDATE NOWAIT", [first])
        assert len(requeued.result()) == 20


def test_a_batch_ends_again_with_a_job_that_it_knows_by_its_key(
    database_url: str, redis_url: str, database: Database
) -> None:
    keyed = question(idempotency_key="k")
    with Producer(database_url, redis_url) as producer:
        job = producer.submit(keyed)
        batch = producer.submit_many([keyed])[0].batch_id
        assert batch
        toy_runner(settings.load(), database, Interrupted(0, _fail)).run_next()
        tick(database_url, redis_url)
        assert producer.batch(batch).states == {"failed": 1}
        assert producer.batch(batch).finished_at
        producer.requeue(job)
        assert producer.batch(batch).finished_at is None
        toy_runner(settings.load(), database, ToyRuntime()).run_next()
        tick(database_url, redis_url)
        assert producer.batch(batch).states == {"succeeded": 1}
        assert producer.batch(batch).finished_at


def test_batches_that_know_a_job_by_its_key_are_found_without_reading_all_lines(
    producer: Producer, database: Database
) -> None:
    job = producer.submit(question())
    used = (
        "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'ix_batch_lines_known_id'"
    )
    with database.transaction() as conn:
        conn.execute("UPDATE jobs SET state = 'failed', finished_at = now()")
        conn.execute("SET LOCAL enable_seqscan = off")  # there are few lines here
        assert dead_letters.requeue(conn, [job.id]) == [job.id]
        conn.execute("SELECT pg_stat_force_next_flush()")
    with database.transaction() as conn:
        assert conn.execute(used).fetchone() == (1,)


def test_jobs_that_fail_at_once_are_restarted_and_requeued_once(
    marco: Marco, producer: Producer, database: Database
) -> None:
    batch = producer.submit_many([question(f"{i}?") for i in range(3)])[0].batch_id
    assert batch
    with database.transaction() as conn:
        conn.execute("UPDATE jobs SET state = 'failed', finished_at = now()")
        conn.execute(_FAILS_AT_ONCE)
    assert producer.restart_batch(batch) == 3
    assert len(json.loads(marco("dead", "requeue", "--all", "--json"))["requeued"]) == 6


def test_a_line_that_is_there_twice_is_restarted_once(producer: Producer) -> None:
    batch = producer.submit_many([question(idempotency_key="k")] * 2)[0].batch_id
    assert batch
    producer.cancel_all(batch_id=batch)
    assert producer.restart_batch(batch) == 1
    assert producer.restart_batch(batch) == 0


def test_a_restart_counts_though_the_clock_is_behind_that_of_the_submission(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = producer.submit_many([question()])[0].batch_id
    assert batch
    producer.cancel_all(batch_id=batch)
    an_hour_ago = time.time_ns() - 3_600_000_000_000
    monkeypatch.setattr("time.time_ns", lambda: an_hour_ago)
    assert producer.restart_batch(batch) == 1
    assert producer.batch(batch).states == {"queued": 1}


_FAILS_AT_ONCE = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF (SELECT count(*) FROM audit_log) > 20 THEN RAISE 'again and again'; END IF;
        NEW.state := 'failed'; NEW.finished_at := clock_timestamp(); RETURN NEW;
    END $$;
    CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION fail()
"""


def _fail() -> None:
    raise ValueError("a bug")


def test_whoever_takes_messages_back_locks_the_jobs_in_order(
    database_url: str, redis_url: str
) -> None:
    with Producer(database_url, redis_url) as producer, ThreadPoolExecutor() as threads:
        jobs = [job.id for job in producer.submit_many([question()] * 20)]
        with producer._database.transaction() as conn:
            conn.execute("UPDATE jobs SET turn_at = now() WHERE id = %s", [jobs[0]])  # moves it
        with producer._database.transaction() as conn:
            conn.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", [jobs[0]])
            done = threads.submit(producer._database.call, scheduling.unpublished, jobs)
            waits = "SELECT FROM pg_locks WHERE NOT granted"
            wait_until(lambda: conn.execute(waits).rowcount == 1, "it waits for the first")
            conn.execute("SELECT FROM jobs WHERE id = ANY (%s) FOR UPDATE NOWAIT", [jobs[1:]])
        done.result()
