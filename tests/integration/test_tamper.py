"""Every way to tamper with what is stored is found, and the row is named.

Whoever tampers here is a superuser with triggers and foreign keys switched off.
`make test-tamper` prints each tampering and the row it was found at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.rows import class_row

from marco_search import migrations
from marco_search.audit.anchors import Anchor
from marco_search.audit.chain import JOB, Link, follow
from marco_search.audit.findings import Finding, Report
from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.audit.proofs import prove
from marco_search.jobs import Job
from marco_search.local import ServiceUrls
from marco_search.store.seal import seals, verification
from marco_search.store.seal.verification import verify_all
from marco_search.store.trail import rows
from tests.databases import scratch_database
from tests.integration.toys import insert, open_database, question, runner, settings_for
from tests.toy import ToyRuntime

TABLES = ("nodes", "rollouts", "answers", "attempts", "audit_log", "chain", "proofs", "jobs")
Tamper = Callable[[Connection, list[UUID]], object]


@dataclass(frozen=True)
class Stored:
    """A database with four jobs that have ended, and an anchor taken at the end."""

    url: str
    jobs: list[UUID]
    anchor: Anchor


@pytest.fixture(scope="module")
def stored(services: ServiceUrls) -> Iterator[Stored]:
    with scratch_database(services.database_url) as url:
        migrations.upgrade(url)
        with open_database(url) as database:
            asked: list[Job] = [
                question(f"What is {i} + 1?", expected="2", options={"seed": i, "reflection": how})
                for i, how in enumerate(("never", "branch", "always", "never"))
            ]
            ids = [job.id for job in insert(database, *asked)]
            settings = settings_for(url, "redis://127.0.0.1:1/0")
            one = runner(settings, database, ToyRuntime(failing=0.1))
            for _ in ids:
                one.run_next()
            with database.transaction() as conn:
                anchor = seals.anchor(conn)
        with psycopg.connect(url) as conn:
            conn.execute("CREATE SCHEMA kept")
            for table in TABLES:
                names = {"table": sql.Identifier(table), "kept": sql.Identifier("kept", table)}
                conn.execute(sql.SQL("CREATE TABLE {kept} AS TABLE {table}").format(**names))
        yield Stored(url, ids, anchor)


@pytest.fixture
def url(stored: Stored) -> Iterator[str]:
    """The database; after the test it is put back to what it was."""
    yield stored.url
    with tampering(stored.url) as conn:
        for table in TABLES:
            names = {"table": sql.Identifier(table), "kept": sql.Identifier("kept", table)}
            conn.execute(sql.SQL("DELETE FROM {table}").format(**names))
            conn.execute(
                sql.SQL("INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE {kept}").format(**names)
            )


@contextmanager
def tampering(url: str) -> Iterator[Connection]:
    """A connection on which nothing is guarded."""
    with psycopg.connect(url) as conn:
        conn.execute("SET session_replication_role = replica")
        yield conn


def run(statement: str) -> Tamper:
    """A tampering that is one SQL statement; %(job)s is the second job's id."""
    return lambda conn, ids: conn.execute(statement.encode(), {"job": ids[1]})


def delete_job(conn: Connection, job_id: UUID) -> None:
    """Leave no trace of a job, in the chain neither."""
    conn.execute(
        "DELETE FROM proofs USING chain AS c WHERE c.seq = proofs.seq AND job_id = %s", [job_id]
    )
    for table in TABLES[:6]:
        delete = sql.SQL("DELETE FROM {} WHERE job_id = %s").format(sql.Identifier(table))
        conn.execute(delete, [job_id])
    conn.execute("DELETE FROM jobs WHERE id = %s", [job_id])


def reorder(conn: Connection, ids: list[UUID]) -> None:
    conn.execute("UPDATE chain SET seq = CASE seq WHEN 2 THEN -3 ELSE -2 END WHERE seq IN (2, 3)")
    conn.execute("UPDATE chain SET seq = -seq WHERE seq < 0")


def swap_answers(conn: Connection, ids: list[UUID]) -> None:
    conn.execute("UPDATE answers SET rank = rank + 100 WHERE job_id = %s", [ids[1]])
    conn.execute(
        "UPDATE answers SET rank = CASE rank WHEN 101 THEN 2 WHEN 102 THEN 1 ELSE rank - 100 END"
        " WHERE job_id = %s",
        [ids[1]],
    )


EDIT = """
UPDATE nodes SET text = text || '!', token_texts[cardinality(token_texts)] =
    token_texts[cardinality(token_texts)] || '!' WHERE job_id = %(job)s AND node_id = 1
"""


def edit_and_prove(conn: Connection, ids: list[UUID]) -> bytes:
    """Edit a node and write its hash anew; the root of all hashes is then another."""
    conn.execute(EDIT.encode(), {"job": ids[1]})
    kinds = FORMATS[NEWEST].kinds
    where = rows.of_jobs([ids[1]])
    found, salts = rows.read(conn, kinds, where)
    proof = prove(found[ids[1]], kinds, salts[ids[1]])
    conn.execute(
        "UPDATE proofs SET hashes = %s FROM chain AS c WHERE c.seq = proofs.seq AND job_id = %s",
        [proof.packed(), ids[1]],
    )
    return proof.root


def edit_and_chain(conn: Connection, ids: list[UUID]) -> None:
    """The same, and put the root into the chain."""
    root = edit_and_prove(conn, ids)
    conn.execute("UPDATE chain SET root = %s WHERE job_id = %s", [root, ids[1]])


def edit_and_rewrite(conn: Connection, ids: list[UUID]) -> None:
    """The same, and write every later link anew: nothing inside the database shows it."""
    edit_and_chain(conn, ids)
    with conn.cursor(row_factory=class_row(Link)) as cursor:
        first, *links = cursor.execute("SELECT * FROM chain ORDER BY seq").fetchall()
    last = first
    for link in links:
        last = follow(
            last, kind=JOB, job_id=link.job_id, root=link.root, at=link.at, format=link.format
        )
        conn.execute(
            "UPDATE chain SET previous = %s, head = %s WHERE seq = %s",
            [last.previous, last.head, last.seq],
        )


def end_again(conn: Connection, ids: list[UUID]) -> None:
    """Change the result of a job that succeeded, and seal it as the workers do."""
    conn.execute("UPDATE jobs SET seconds = seconds + 1 WHERE id = %s", [ids[1]])
    seals.seal(conn, [ids[1]])


def put_back_and_end_again(conn: Connection, ids: list[UUID]) -> None:
    """The same, with an event that only a job that was given up may have."""
    conn.execute("INSERT INTO audit_log (job_id, event) VALUES (%s, 'requeued')", [ids[1]])
    end_again(conn, ids)


# Name, how, table and key of the first row that does not fit, whether it takes an anchor.
TAMPERINGS: list[tuple[str, Tamper, str, str, bool]] = [
    ("a node's text", run(EDIT), "nodes", "node_id 1", False),
    (
        "a log-prob",
        run("UPDATE nodes SET logprobs[1] = -9 WHERE job_id = %(job)s AND node_id = 2"),
        "nodes", "node_id 2", False,
    ),
    (
        "a token's confidence",
        run("UPDATE nodes SET confidences[1] = 0.999 WHERE job_id = %(job)s AND node_id = 3"),
        "nodes", "node_id 3", False,
    ),
    (
        "a node's parent",
        run("UPDATE nodes SET parent_id = 1 - parent_id WHERE job_id = %(job)s AND node_id = 2"),
        "nodes", "node_id 2", False,
    ),
    (
        "a node deleted",
        run("DELETE FROM nodes WHERE job_id = %(job)s AND node_id = 4"),
        "nodes", "node_id 4", False,
    ),
    ("two answers swapped", swap_answers, "answers", "rank 1", False),
    ("a job removed, its link too", lambda c, ids: delete_job(c, ids[1]), "chain", "seq 2", False),
    (
        "a job removed, its link left",
        run("DELETE FROM jobs WHERE id = %(job)s"),
        "jobs", "id", False,
    ),
    ("two links of the chain reordered", reorder, "chain", "seq 2", False),
    (
        "the prompt of an attempt",
        run("UPDATE attempts SET prompt = replace(prompt, '1', '7') WHERE job_id = %(job)s"),
        "attempts", "generation 1", False,
    ),
    (
        "the question that was asked",
        run("UPDATE jobs SET payload = payload || '{\"question\": \"2 + 2?\"}' WHERE id = %(job)s"),
        "jobs", "id", False,
    ),
    ("the tail cut off", lambda c, ids: delete_job(c, ids[3]), "chain", "seq 4", True),
    ("a node, and its hash", edit_and_prove, "chain", "seq 2", False),
    ("a node, its hash and its link", edit_and_chain, "chain", "seq 2", False),
    ("a node, and the chain written anew", edit_and_rewrite, "chain", "seq 4", True),
    (
        "the value of a rollout",
        run("UPDATE rollouts SET value = 1 WHERE job_id = %(job)s AND rollout_id = 0"),
        "rollouts", "rollout_id 0", False,
    ),
    (
        "the answer on the job's row",
        run("UPDATE jobs SET answer = E'\\x1b[2J' WHERE id = %(job)s"),
        "jobs", "id", False,
    ),
    (
        "an event of the log",
        run("UPDATE audit_log SET at = at - interval '1 day' WHERE job_id = %(job)s"),
        "audit_log", "id", False,
    ),
    (
        "a job set back to be run again",
        run("UPDATE jobs SET state = 'queued', finished_at = NULL WHERE id = %(job)s"),
        "jobs", "id", False,
    ),
    (
        "a node added",
        run(
            "INSERT INTO nodes SELECT (jsonb_populate_record(n, '{\"node_id\": 999}')).*"
            " FROM nodes AS n WHERE job_id = %(job)s AND node_id = 1"
        ),
        "nodes", "node_id 999", False,
    ),
    ("a result changed and sealed again", end_again, "chain", "seq", False),
    ("a job that succeeded put back", put_back_and_end_again, "chain", "seq", False),
    (
        "an event made up after the end",
        run("INSERT INTO audit_log (job_id, event) VALUES (%(job)s, 'worker_lost')"),
        "audit_log", "id", False,
    ),
    *(
        (
            f"a made-up event after the end: {event}",
            run(f"INSERT INTO audit_log (job_id, event) VALUES (%(job)s, '{event}')"),  # noqa: S608
            "audit_log", "id", False,
        )
        for event in ("requeued", "published", "archived", "cancelled", "approved")
    ),
    (
        "the format of a link",
        run("UPDATE chain SET format = 1 WHERE job_id = %(job)s"),
        "chain", "seq 2", False,
    ),
    (
        "a format that nobody knows",
        run("UPDATE chain SET format = 99 WHERE job_id = %(job)s"),
        "chain", "seq 2", False,
    ),
    (
        "a plan that can't be read",
        run("UPDATE jobs SET plan = '[]' WHERE id = %(job)s"),
        "jobs", "id", False,
    ),
    (
        "a plan too deep to be read",
        run("UPDATE jobs SET plan = (repeat('[', 5000) || repeat(']', 5000))::jsonb"
            " WHERE id = %(job)s"),
        "jobs", "id", False,
    ),
    *(
        (
            f"the time of a link: {at}",
            run(f"UPDATE chain SET at = '{at}' WHERE job_id = %(job)s"),  # noqa: S608
            "chain", "seq 2", False,
        )
        for at in ("infinity", "-infinity", "4000-01-01 BC", "20000-01-01")
    ),
    (
        "values whose sum is no number",
        run("UPDATE rollouts SET value = -1e308 WHERE job_id = %(job)s"),
        "rollouts", "rollout_id 0", False,
    ),
    (
        "a proof of no link",
        run("INSERT INTO proofs SELECT (jsonb_populate_record(p, '{\"seq\": 9}')).*"
            " FROM proofs AS p WHERE seq = 2"),
        "proofs", "seq 9", False,
    ),
    (
        "the proof of a job deleted",
        run("DELETE FROM proofs WHERE seq = 2"),
        "proofs", "seq 2", False,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "tamper", "table", "key", "needs_anchor"), TAMPERINGS, ids=[t[0] for t in TAMPERINGS]
)
def test_it_is_found_and_the_row_is_named(
    url: str, stored: Stored, what: str, tamper: Tamper, table: str, key: str, needs_anchor: bool
) -> None:
    with tampering(url) as conn:
        tamper(conn, stored.jobs)
    report = verify_all(url)
    assert report.ok is needs_anchor
    found = list(report.findings) or against_anchor(url, stored.anchor)
    print(f"\n{what}\n    {found[0]}", end=" ")
    assert found[0].table == table
    assert key in found[0].key
    assert all(str(finding).isprintable() for finding in found)  # it is shown in terminals
    elsewhere = {f.job_id for f in found} - {stored.jobs[1], None}
    # A link that was moved or is missing shows at its neighbours as well.
    assert table == "chain" or not elsewhere


@pytest.mark.parametrize("table", ["attempts", "audit_log"])
def test_a_row_with_the_key_of_another_is_found(stored: Stored, table: str) -> None:
    job, at = stored.jobs[1], sql.Identifier(table)
    key = "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'p'"
    with tampering(stored.url) as conn, conn.transaction(force_rollback=True):
        (name,) = conn.execute(key, [table]).fetchone() or ("",)
        drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {} CASCADE")
        conn.execute(drop.format(at, sql.Identifier(name)))
        again = sql.SQL("INSERT INTO {0} OVERRIDING SYSTEM VALUE SELECT * FROM {0}"
                        " WHERE job_id = %s LIMIT 1")  # fmt: skip
        conn.execute(again.format(at), [job])
        found = verification.check_one(conn, job)[0].findings
    assert [(f.table, f.what) for f in found] == [(table, "several rows have this key")]


def against_anchor(url: str, anchor: Anchor) -> list[Finding]:
    with open_database(url) as database, database.transaction() as conn:
        return seals.check_anchor(conn, anchor)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jobs", 3),
        ("chained_at", "2026-01-01T00:00:00+00:00"),
        ("made_at", "2026-01-01T00:00:00+00:00"),
    ],
)
def test_what_an_unsigned_anchor_says_is_compared_with_the_chain(
    stored: Stored, name: str, value: object
) -> None:
    edited = Anchor(**stored.anchor.model_dump() | {name: value})
    (found,) = against_anchor(stored.url, edited)
    assert (found.table, found.what) == ("anchor", name)


def test_an_anchor_made_later_than_its_place_in_the_chain_allows_is_found(stored: Stored) -> None:
    with open_database(stored.url) as database, database.transaction() as conn:
        early = conn.execute("SELECT encode(head, 'hex'), at FROM chain WHERE seq = 2").fetchone()
    assert early is not None
    about = {"seq": 2, "head": early[0], "jobs": 2, "chained_at": early[1].isoformat()}
    edited = stored.anchor.model_dump() | about
    assert against_anchor(stored.url, Anchor(**edited)) == []
    edited["made_at"] = "2100-01-01T00:00:00+00:00"
    (found,) = against_anchor(stored.url, Anchor(**edited))
    assert (found.table, found.what) == ("anchor", "made_at")


def test_what_nobody_touched_fits(stored: Stored) -> None:
    report: Report = verify_all(stored.url)
    assert report.findings == ()
    assert (report.jobs, report.links, report.open_jobs) == (4, 5, 0)
    assert report.nodes > 50
    assert against_anchor(stored.url, stored.anchor) == []


def test_a_database_made_anew_does_not_pass_for_the_anchored_one(
    database_url: str, stored: Stored, tmp_path: Path
) -> None:
    found = against_anchor(
        database_url, Anchor(**json.loads(json.dumps(stored.anchor.model_dump())))
    )
    assert found[0].what == "another database"


def test_what_candidates_read_proves_nothing_and_is_not_proved(url: str) -> None:
    """The ids of the candidates are hashed; their spelling stands beside the trail."""
    with tampering(url) as conn:
        changed = conn.execute("UPDATE vocabulary SET text = 'forged'").rowcount
        conn.execute("DELETE FROM vocabulary WHERE token_id % 2 = 0")
    assert changed > 5
    assert verify_all(url).ok
