"""Candidates can be read: their texts are kept once, with the first round that met them."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from marco_search.store.db import Database
from marco_search.store.reads import job_record
from marco_search.store.trail import vocabulary
from tests.integration.toys import insert, open_database, question, runner, settings_for
from tests.toy import ToyRuntime


def test_every_candidate_of_a_search_can_be_read(database: Database, database_url: str) -> None:
    one, two = insert(database, question(), question("And 2 + 2?"))
    settings = settings_for(database_url, "redis://nobody")
    for name in ("first", "second"):  # the second finds them written
        runner(settings, database, ToyRuntime(), name).run_next()
    with database.transaction() as conn:
        for job in (one, two):
            texts = conn.execute(
                "SELECT DISTINCT token_id, text FROM audit.alternatives WHERE job_id = %s", [job.id]
            ).fetchall()
            assert len(texts) > 8
            known = dict(texts)
            assert (known[1001], None in known.values()) == ("other 1001", False)
            rows = job_record.tokens(conn, job.id).values()
            assert {t for row in rows for t in row.top_texts} == set(known.values())
        models = conn.execute("SELECT DISTINCT model, revision FROM audit.vocabulary").fetchall()
        assert models == [("toy-marco-o1", "0" * 64)]


def test_a_text_is_written_once_and_stays(database: Database) -> None:
    with database.transaction() as conn:
        vocabulary.write(conn, "m", "1", {1: "one", 2: "\ufffd"})
        vocabulary.write(conn, "m", "1", {1: "uno", 3: "three"})
        rows = conn.execute("SELECT token_id, text FROM vocabulary ORDER BY token_id").fetchall()
    assert rows == [(1, "one"), (2, "\ufffd"), (3, "three")]
    with pytest.raises(errors.RestrictViolation), database.transaction() as conn:
        conn.execute("UPDATE vocabulary SET text = 'x'")


def test_two_workers_that_write_the_same_do_not_block_each_other_for_good(
    database: Database, database_url: str
) -> None:
    """Each waits for the other's commit at most: no deadlock, whatever order they learn in."""
    from concurrent.futures import ThreadPoolExecutor

    texts = {i: f"t{i}" for i in range(300)}

    def write(backwards: bool) -> None:
        with open_database(database_url) as own:
            for start in range(0, 300, 30):
                part = sorted(texts.items(), reverse=backwards)[start : start + 60]
                with own.transaction() as conn:
                    vocabulary.write(conn, "m", "1", dict(part))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (True, False)))
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT count(*) FROM vocabulary").fetchone() == (300,)
