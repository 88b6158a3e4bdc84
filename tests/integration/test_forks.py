"""Forks where the model was unsure: in the trail, read by SQL and people, verified, replayed.

The pocket model answers here, through the queue's own runner and the installed command.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from math import exp
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from marco_search.cli.solve_commands import drawn_nodes
from marco_search.console.reader import Reader
from marco_search.console.rendering import render
from marco_search.engine import search_job
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.render.document import cards
from marco_search.runtime import open_runtime
from marco_search.search.tree import Rollout, Tree
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.reads import job_record
from marco_search.store.trail import trail
from tests.integration.toys import insert, marco, open_database, runner, settings_for

QUESTION = ReasoningJob(
    question="Lily has 11 boxes with 43 books each. Lily gives 9 books to Tom. Lily puts the books "
    "evenly into 4 bags and keeps one bag. How many books does Lily have now?",
    options=SearchOptions(rollouts=6, early_stop=False, seed=3),
)


@dataclass(frozen=True)
class Forked:
    """A database with one job of the default search, which forked."""

    url: str
    database: Database
    id: UUID
    tree: Tree

    @property
    def forks(self) -> list[Rollout]:
        return [r for r in self.tree.rollouts if r.forced is not None]


@pytest.fixture(scope="module")
def forked(module_database_url: str) -> Iterator[Forked]:
    url = module_database_url
    with open_database(url) as database:
        (job,) = insert(database, QUESTION)
        settings = settings_for(url, "redis://127.0.0.1:1/0")
        with closing(open_runtime(Settings())) as opened:
            runner(settings, database, opened).run_next()
        with database.transaction() as conn:
            tree = Tree.restore(*trail.load(conn, job.id))
        found = Forked(url, database, job.id, tree)
        assert len(found.forks) >= 2
        yield found


def test_a_view_tells_what_was_taken_and_what_was_passed_over(forked: Forked) -> None:
    with forked.database.connect() as conn, conn.cursor(row_factory=dict_row) as cursor:
        query = "SELECT * FROM audit.forks WHERE job_id = %s ORDER BY rollout_id"
        rows = cursor.execute(query, [forked.id]).fetchall()
    tree = forked.tree
    for row, fork in zip(rows, forked.forks, strict=True):
        before = [tree.nodes[i] for i in tree.path(fork.start_id)]
        first = tree.nodes[fork.path[len(before)]]
        siblings = (tree.nodes[i] for i in tree.children[fork.start_id])
        elder = next(node for node in siblings if node.tokens)
        left = next(r for r in tree.rollouts if elder.node_id in r.path)
        shares = {i: exp(p) for i, p in elder.tokens[0].top}
        assert row["rollout_id"] == fork.rollout_id and row["node_id"] == first.node_id
        assert row["position"] == sum(len(node.tokens) for node in before)
        assert row["line"] == tree.text(fork.start_id).rpartition("\n")[2]
        assert (row["taken_id"], row["passed_over_id"]) == (elder.tokens[0].id, fork.forced)
        assert (row["taken"], row["passed_over"]) == (elder.tokens[0].text, first.tokens[0].text)
        for name in ("taken", "passed_over"):
            share = shares[row[f"{name}_id"]] / sum(shares.values())
            assert row[f"{name}_share"] == pytest.approx(share)
        assert (row["left_rollout"], row["left_answer"]) == (left.rollout_id, left.answer)
        assert row["changed"] == (fork.answer != left.answer)


def test_the_trail_draws_as_the_search_does_and_says_where_it_was_unsure(
    forked: Forked, tmp_path: Path
) -> None:
    finished = search_job(QUESTION)
    with forked.database.transaction() as conn:
        stored = job_record.tree(conn, forked.id)
    for row, node in zip(stored, drawn_nodes(finished.search), strict=True):
        assert (row.node_id, row.text, row.fork) == (node.node_id, node.text, node.fork)
    done = marco(forked.url, "show", str(forked.id))
    shown = done.stdout
    assert not done.stderr, done.stderr
    assert "here it was unsure between = (." in shown and " and : (." in shown
    reader = Reader(forked.database)
    assert all("instead of" in render(reader, forked.id, name) for name in ("dot", "mermaid"))
    assert all("unsure between" in render(reader, forked.id, name) for name in ("svg", "html"))
    data = json.loads(render(reader, forked.id, "json"))
    assert [r["forced"] for r in data["rollouts"]] == [r.forced for r in forked.tree.rollouts]
    drawn = cards(reader.record(forked.id))
    assert len(drawn) < len(stored)
    assert sorted(i for card in drawn for i in card["parts"]) == [row.node_id for row in stored]
    marco(forked.url, "export", str(tmp_path), "--table", "rollouts")
    lines = (tmp_path / "rollouts.jsonl").read_text().splitlines()
    assert [json.loads(x)["forced"] for x in lines] == [r.forced for r in forked.tree.rollouts]


def test_it_is_verified_and_replayed_bit_for_bit(forked: Forked) -> None:
    for command in ("verify", "replay"):
        done = marco(forked.url, command, str(forked.id))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE rollouts SET forced = forced + 1 WHERE job_id = %s AND rollout_id = {fork}",
        "UPDATE rollouts SET forced = NULL WHERE job_id = %s AND rollout_id = {fork}",
        "UPDATE nodes SET token_ids[1] = 7 WHERE job_id = %s AND node_id = {node}",
    ],
)
def test_what_a_fork_began_with_cannot_be_changed(forked: Forked, change: str) -> None:
    fork = forked.forks[0]
    node = fork.path[fork.path.index(fork.start_id) + 1]
    with psycopg.connect(forked.url) as conn:
        conn.execute("SET session_replication_role = replica")
        conn.execute(change.format(fork=fork.rollout_id, node=node).encode(), [forked.id])
        conn.commit()
        try:
            found = marco(forked.url, "verify", str(forked.id))
        finally:
            before = (fork.forced, forked.id, fork.rollout_id)
            query = "UPDATE rollouts SET forced = %s WHERE job_id = %s AND rollout_id = %s"
            conn.execute(query, before)
            query = "UPDATE nodes SET token_ids[1] = %s WHERE job_id = %s AND node_id = %s"
            conn.execute(query, (fork.forced, forked.id, node))
    assert found.returncode == 9
    row = f"rollout_id {fork.rollout_id}" if "rollouts" in change else f"node_id {node}"
    assert row in found.stdout


def test_an_auditor_sees_the_forks_of_its_tenants(forked: Forked) -> None:
    for tenant, expected in (("default", len(forked.forks)), ("another", 0)):
        login = f"auditor_{uuid4().hex[:8]}"
        with psycopg.connect(forked.url, autocommit=True) as admin:
            admin.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'secret' IN ROLE marco_auditor")
            admin.execute("INSERT INTO auditors VALUES (%s, %s)", [login, tenant])
        parts = urlsplit(forked.url)
        place = f"{login}:secret@{parts.hostname}:{parts.port}"
        try:
            with psycopg.connect(urlunsplit(parts._replace(netloc=place))) as conn:
                query = "SELECT count(*), bool_and(taken <> '') FROM audit.forks"
                row = conn.execute(query).fetchone()
                assert row == (expected, True if expected else None)
        finally:
            with psycopg.connect(forked.url, autocommit=True) as admin:
                admin.execute(f"DROP ROLE {login}")
