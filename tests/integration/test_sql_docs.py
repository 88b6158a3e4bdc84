"""docs/sql.md is current, and every query in it returns what its text says.

What a query should return is worked out here in Python, from the records of the search.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import psycopg
import pytest

from marco_search.errors import QueryRefused
from marco_search.search.actions import Action
from marco_search.search.branches import Finish
from marco_search.search.tree import Node, Rollout
from marco_search.store.reads import queries
from marco_search.store.reads.reader_sql import run_query, with_values
from marco_search.store.trail import trail
from ops.docs import PAGE, read, updated
from tests.integration.audited import Audited

QUESTIONS = {question.number: question for question in read()}
Row = dict[str, Any]


@dataclass
class Asked:
    """The page's queries on one database, and what the searches themselves say."""

    filled: Audited
    conn: psycopg.Connection[Any]

    def __call__(self, number: int, job: str = "plain1") -> list[Row]:
        query = with_values(QUESTIONS[number].sql, {"job": str(self.filled.ids[job])})
        result = run_query(self.conn, query)
        return [dict(zip(result.columns, row, strict=True)) for row in result.rows]

    def tree(self, job: str = "plain1") -> tuple[dict[int, Node], list[Rollout]]:
        with self.filled.database.transaction() as conn:
            nodes, rollouts = trail.load(conn, self.filled.ids[job])
        return {node.node_id: node for node in nodes}, rollouts

    def votes(self, job: str = "plain1") -> list[tuple[str, Rollout]]:
        """Each answer by rank, with its most confident rollout."""
        _, rollouts = self.tree(job)
        with self.filled.database.transaction() as conn:
            (result,) = queries.results(conn, [self.filled.ids[job]])
        return [
            (
                answer.normalised,
                max(
                    (r for r in rollouts if r.answer == answer.normalised),
                    key=lambda r: (r.path_confidence, -r.rollout_id),
                ),
            )
            for answer in result.answers
        ]

    def jobs(self) -> dict[str, queries.JobStatus]:
        with self.filled.database.transaction() as conn:
            found = queries.statuses(conn, self.filled.ids.values())
        return dict(zip(self.filled.ids, found, strict=True))


@pytest.fixture
def asked(filled: Audited) -> Iterator[Asked]:
    with psycopg.connect(filled.url) as conn:
        yield Asked(filled, conn)


SQL = re.compile(r"```sql\n(.*?)```|`(SELECT [^`]*FROM[^`]*)`", re.DOTALL)
ELSEWHERE = [
    pytest.param(block or inline, id=page.stem)
    for page in sorted(PAGE.parent.glob("*.md"))
    if page != PAGE
    for block, inline in SQL.findall(page.read_text())
]


@pytest.mark.parametrize("query", ELSEWHERE)
def test_the_sql_of_other_pages_runs(asked: Asked, query: str) -> None:
    assert run_query(asked.conn, query.rstrip().rstrip(";")).columns


def test_the_generated_part_of_the_page_is_current(asked: Asked) -> None:
    page = PAGE.read_text()
    assert updated(page, asked.conn) == page, "run `python -m ops.docs`"


def test_the_page_has_a_checked_query_for_each_of_its_questions() -> None:
    headings = PAGE.read_text().count("\n### ")
    assert list(QUESTIONS) == list(range(1, headings + 1))
    assert set(CHECKS) == set(QUESTIONS)
    assert sum(question.about_one_job for question in QUESTIONS.values()) >= 10


def test_a_name_without_a_value_is_refused() -> None:
    assert with_values("select :'a', 'x'::text", {"a": "it's"}) == "select 'it''s', 'x'::text"
    with pytest.raises(QueryRefused, match="--set job=VALUE"):
        with_values("select :'job'", {})


def answers(asked: Asked) -> None:
    rows = asked(1)
    votes = Counter(r.answer for r in asked.tree()[1] if r.answer)
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert {row["answer"]: row["votes"] for row in rows} == votes
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert rows[0]["ahead_by"] == pytest.approx(rows[0]["share"] - rows[1]["share"])


def turning_points(asked: Asked) -> None:
    nodes, rollouts = asked.tree()
    key, best = asked.votes()[0]
    expected: Counter[tuple[Any, ...]] = Counter()
    for rollout in rollouts:
        if rollout.answer not in (None, key):
            i = next(
                i for i, (a, b) in enumerate(zip(best.path, rollout.path, strict=False)) if a != b
            )
            at, winner, loser = best.path[i - 1], best.path[i], rollout.path[i]
            expected[at, winner, nodes[winner].text, loser, nodes[loser].text, rollout.answer] += 1
    names = ("parted_at", "winner", "winner_said", "loser", "loser_said", "lost_answer")
    rows = asked(2)
    assert expected
    assert Counter({tuple(r[n] for n in names): r["rollouts"] for r in rows}) == expected
    for row in rows:
        through = [r.value for r in rollouts if row["loser"] in r.path]
        assert row["loser_value"] == pytest.approx(fmean(through))


def least_sure(asked: Asked) -> None:
    nodes, _ = asked.tree()
    for row, (key, best) in zip(asked(3), asked.votes(), strict=True):
        held = [
            (c, n, i) for n in best.path[1:] for i, c in enumerate(nodes[n].confidences, start=1)
        ]
        confidence, node_id, position = min(held)
        assert row["answer"] == key
        assert (row["confidence"], row["node_id"], row["position"]) == (
            confidence, node_id, position,
        )  # fmt: skip
        assert row["token"] == nodes[node_id].tokens[position - 1].text


def candidates(asked: Asked) -> None:
    nodes, _ = asked.tree()
    rows = asked(4)
    places = list(dict.fromkeys((row["node_id"], row["position"]) for row in rows))
    assert len(places) == 5
    assert places[0] == (asked(3)[0]["node_id"], asked(3)[0]["position"])
    for node_id, position in places:
        token = nodes[node_id].tokens[position - 1]
        mine = [r for r in rows if (r["node_id"], r["position"]) == (node_id, position)]
        assert [r["token_id"] for r in mine] == [i for i, _ in token.top]
        assert [r["candidate"] for r in mine if r["chosen"]] == [token.text]


def reflections(asked: Asked) -> None:
    found = 0
    for job in (f"plain{i}" for i in range(6)):
        nodes, rollouts = asked.tree(job)
        rows = {row["node_id"]: row for row in asked(5, job)}
        for node_id, node in nodes.items():
            if node.action != Action.REFLECTION:
                continue
            beside = [r for r in rollouts if node.parent_id in r.path and r.answer]
            tops = []
            for reflected in (False, True):
                held: dict[str, list[float]] = defaultdict(list)
                for r in beside:
                    if (node_id in r.path) is reflected:
                        held[str(r.answer)].append(r.value)
                tops.append(
                    min(held, key=lambda a: (-len(held[a]), -fmean(held[a]), a)) if held else None
                )
            before, after = tops
            changed = None not in tops and before != after
            assert (node_id in rows) is changed
            if changed:
                assert (rows[node_id]["before"], rows[node_id]["after"]) == (before, after)
                found += 1
    assert found > 0


def winning_path(asked: Asked) -> None:
    nodes, rollouts = asked.tree()
    rows, best = asked(6), asked.votes()[0][1]
    assert tuple(row["node_id"] for row in rows) == best.path
    assert [row["text"] for row in rows[1:]] == [nodes[n].text for n in best.path[1:]]
    assert rows[0]["visits"] == sum(r.finish is not Finish.FAILED for r in rollouts)


def most_visited(asked: Asked) -> None:
    _, rollouts = asked.tree()
    visits = Counter(node for r in rollouts for node in r.path if node)
    rows = asked(7)
    assert [row["visits"] for row in rows] == [n for _, n in visits.most_common(10)]
    assert all(visits[row["node_id"]] == row["visits"] for row in rows)
    assert all(row["path"][-1] == row["node_id"] for row in rows)


def leads(asked: Asked) -> None:
    _, rollouts = asked.tree()
    rows = asked(8)
    assert [row["round"] for row in rows] == sorted({r.round for r in rollouts})
    for row in rows:
        sums: dict[str, float] = defaultdict(float)
        for r in rollouts:
            if r.round <= row["round"] and r.answer:
                sums[r.answer] += r.value
        assert row["answer"] == max(sums, key=lambda a: sums[a])
        assert row["share"] == pytest.approx(max(sums.values()) / sum(sums.values()))


def broken_branches(asked: Asked) -> None:
    _, rollouts = asked.tree("patchy")
    broken = [r.rollout_id for r in rollouts if r.finish is not Finish.STOP]
    rows = asked(9, "patchy")
    assert [row["rollout_id"] for row in rows] == broken
    assert {row["error"] for row in rows if row["finish"] == "failed"} == {"made to fail"}


def attempts(asked: Asked) -> None:
    first, second = asked(10, "retried")
    assert (first["ended"], second["ended"]) == ("retried", "succeeded")
    assert (first["error"], second["error"]) == ("overloaded", None)
    assert (second["model"], second["strategy"], second["seed"]) == ("toy-marco-o1", "step", 0)
    assert "Once more?" in second["prompt"]


def time_line(asked: Asked) -> None:
    rows = asked(11, "retried")
    events = [row["event"] for row in rows]
    kinds = ["submitted", "claimed", "round", "retried", "claimed", "round"]
    assert list(dict.fromkeys(events)) == ["submitted", "claimed", "round", "retried", "succeeded"]
    assert events[: len(kinds)] == kinds
    assert rows[0]["seconds_after"] is None
    assert all(row["seconds_after"] >= 0 for row in rows[1:])


def cache(asked: Asked) -> None:
    _, rollouts = asked.tree()
    for row in asked(12):
        mine = [r for r in rollouts if r.round == row["round"]]
        cached, prompt = sum(r.cached_tokens for r in mine), sum(r.prompt_tokens for r in mine)
        assert (row["rollouts"], row["cached_tokens"]) == (len(mine), cached)
        assert row["cached_share"] == pytest.approx(cached / prompt)


def cost(asked: Asked) -> None:
    checked = [job for job in asked.jobs().values() if job.correct is not None]
    right = sum(job.correct is True for job in checked)
    (row,) = asked(13)
    assert (row["jobs"], row["correct"]) == (len(checked), right)
    assert 0 < right < len(checked)
    assert float(row["tokens_per_correct"]) == pytest.approx(
        sum(job.generated_tokens for job in checked) / right
    )


def shares(asked: Asked) -> dict[str, list[float]]:
    with asked.filled.database.transaction() as conn:
        found = {r.job_id: r for r in queries.results(conn, asked.filled.ids.values())}
    return {
        str(i): [a.share for a in found[str(i)].answers]
        for i in asked.filled.ids.values()
        if str(i) in found
    }


def narrow_votes(asked: Asked) -> None:
    rows = asked(14)
    narrow = {i for i, s in shares(asked).items() if len(s) > 1 and s[0] - s[1] < 0.1}
    assert {str(row["job_id"]) for row in rows} == narrow
    assert rows
    assert [row["ahead_by"] for row in rows] == sorted(row["ahead_by"] for row in rows)


def outvoted(asked: Asked) -> None:
    wrong = [job.job_id for job in asked.jobs().values() if job.correct is False]
    rows = asked(15)
    assert rows
    assert {row["job_id"] for row in rows} <= set(wrong)
    assert all(row["rank"] > 1 and row["answer"] != row["expected"] for row in rows)


def retries(asked: Asked) -> None:
    ids = asked.filled.ids
    found = [(row["job_id"], row["generation"], row["error"]) for row in asked(16)]
    assert found == [(ids["retried"], 1, "overloaded"), (ids["dead"], 1, "nobody there")]


def resumed(asked: Asked) -> None:
    (row,) = asked(17)
    assert (row["job_id"], row["workers"]) == (asked.filled.ids["resumed"], ["one", "two"])
    assert row["rounds"][0] == 1
    assert sum(row["rounds"]) == asked.jobs()["resumed"].rounds


def models(asked: Asked) -> None:
    found = {row["revision"][0]: row["jobs"] for row in asked(18)}
    succeeded = sum(job.state == "succeeded" for job in asked.jobs().values())
    assert found == {"0": succeeded - 1, "1": 1}


def waiting(asked: Asked) -> None:
    started = Counter(job.tenant for job in asked.jobs().values() if job.started_at)
    rows = asked(19)
    assert {row["tenant"]: row["jobs"] for row in rows} == started
    assert all(0 <= row["p50"] <= row["p95"] <= row["longest"] for row in rows)


def by_day(asked: Asked) -> None:
    rows, jobs = asked(20), asked.jobs().values()
    for tenant in ("acme", "default"):
        mine = [row for row in rows if row["tenant"] == tenant]
        tokens = sum(job.generated_tokens for job in jobs if job.tenant == tenant)
        assert sum(row["generated_tokens"] for row in mine) == tokens
        assert all(0 < row["cached_share"] < 1 for row in mine)


def batches(asked: Asked) -> None:
    (row,) = asked(21)
    mine = [job for job in asked.jobs().values() if job.batch_id == asked.filled.batch]
    assert (row["batch_id"], row["jobs"]) == (asked.filled.batch, len(mine))
    assert (row["failed"], row["cancelled"]) == (2, 1)
    assert row["generated_tokens"] == sum(job.generated_tokens for job in mine)


def calibration(asked: Asked) -> None:
    rows = asked(22)
    checked = [job for job in asked.jobs().values() if job.correct is not None]
    for measure, values in (
        ("quantile of confidence", [job.confidence_quantile for job in checked]),
        ("share of the vote", [job.share for job in checked]),
    ):
        mine = [row for row in rows if row["measure"] == measure]
        by_fifth = Counter(min(int(value * 5), 4) for value in values if value is not None)
        assert {row["fifth"]: row["jobs"] for row in mine} == by_fifth
        right = sum(row["accuracy"] * row["jobs"] for row in mine)
        assert right == pytest.approx(sum(job.correct is True for job in checked))


def duplicates(asked: Asked) -> None:
    jobs = asked.jobs()
    found = {row["subject"]: (row["jobs"], row["answers"], set(row["given"])) for row in asked(23)}
    names = {
        "A name for a bakery?": ["acme0", "acme1", "acme2"],
        "Question 1?": ["plain1", "newer"],
    }
    for subject, asked_as in names.items():
        given = {jobs[name].answer for name in asked_as}
        assert found.pop(subject) == (len(asked_as), len(given), given)
    assert not found


def failures(asked: Asked) -> None:
    found = {(row["state"], row["error_type"], row["for_example"]) for row in asked(24)}
    ids = asked.filled.ids
    assert found == {
        ("failed", "ModelRefused", ids["refused"]),
        ("dead", "RuntimeUnavailable", ids["dead"]),
    }


def refused_lines(asked: Asked) -> None:
    (row,) = asked(25)
    assert (row["batch_id"], row["source"]) == (asked.filled.batch, "questions.jsonl")
    assert (row["line"], row["custom_id"], row["field"]) == (99, "q99", "question")


def lineage(asked: Asked) -> None:
    trained, base = sorted(asked(26), key=lambda row: row["method"] is None)
    assert (base["revision"], base["manifests"]) == ("0" * 64, [])
    assert (trained["revision"], trained["parent_revision"]) == ("1" * 64, base["revision"])
    assert (trained["method"], trained["manifests"], trained["claims"]) == ("sft", ["d" * 64], 1)


def fine_tuned(asked: Asked) -> None:
    (row,) = asked(27)
    old, new = asked.jobs()["plain1"], asked.jobs()["newer"]
    assert (row["revision"], row["parent_revision"]) == (new.revision, old.revision)
    assert (row["questions"], row["changed"]) == (1, int(old.answer != new.answer))
    assert (row["mended"], row["broken"]) == (
        int(bool(new.correct and not old.correct)),
        int(bool(old.correct and not new.correct)),
    )
    assert row["tokens"] == pytest.approx(new.generated_tokens / old.generated_tokens)


CHECKS: dict[int, Callable[[Asked], None]] = dict(
    enumerate(
        (
            *(answers, turning_points, least_sure, candidates, reflections, winning_path),
            *(most_visited, leads, broken_branches, attempts, time_line, cache, cost),
            *(narrow_votes, outvoted, retries, resumed, models, waiting, by_day, batches),
            *(calibration, duplicates, failures, refused_lines, lineage, fine_tuned),
        ),
        start=1,
    )
)


@pytest.mark.parametrize("number", CHECKS)
def test_a_query_returns_what_the_page_says(asked: Asked, number: int) -> None:
    CHECKS[number](asked)
