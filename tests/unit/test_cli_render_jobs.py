"""Jobs, results and rows of queries as the command line shows them."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType

from marco_search.cli.job_text import (
    changed,
    counts,
    event,
    heading,
    jobs_table,
    live_view,
    progress,
    result_json,
    result_report,
)
from marco_search.cli.service_commands import findings_text
from marco_search.cli.solve_commands import next_steps
from marco_search.cli.sql_command import (
    rows_csv,
    rows_expanded,
    rows_json,
    rows_table,
    too_wide,
)
from marco_search.doctor import Finding
from marco_search.jobs import Answer, JobResult
from marco_search.render.layout import weighting
from marco_search.store.reads.queries import JobStatus

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def status(number: int = 1, **more: Any) -> JobStatus:
    given = {
        "job_id": UUID(int=number), "tenant": "default", "batch_id": None, "kind": "reasoning",
        "state": "queued", "subject": "What is 1 + 1?", "strategy": "step", "priority": 3,
        "created_at": NOW, "started_at": None, "finished_at": None, "run_after": NOW,
        "cancel_requested_at": None, "attempts": 0, "lease_owner": None, "rounds": 0,
        "rollouts": 0, "rollout_budget": None, "nodes": 0, "generated_tokens": 0, "seconds": 0.0,
        "answer": None, "confidence": None, "expected": None, "correct": None,
        "stop_reason": None, "model": None, "error_type": None, "error": None,
    }  # fmt: skip
    return JobStatus(**(given | more))


DONE = status(
    7, state="succeeded", answer="2", expected="2", correct=True, confidence=0.987,
    share=0.75, confidence_quantile=0.4, nodes=12,
    generated_tokens=3456, seconds=1.25, rollouts=16, finished_at=NOW,
)  # fmt: skip
FAILED = status(8, state="failed", error="the model\nfell over", finished_at=NOW)
RUNNING = status(9, state="running", rollouts=8, rollout_budget=16, attempts=2)


def printed(part: RenderableType, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(part)
    return out.getvalue()


def test_a_job_s_row_has_all_that_came_out_and_the_last_row_the_sums() -> None:
    text = printed(jobs_table([DONE, FAILED, RUNNING]))
    row = next(line for line in text.splitlines() if line.startswith("00000007"))
    assert row.split() == [
        "00000007", "succeeded", "What", "is", "1", "+", "1?", "2", "2", "yes", ".987",
        "75%", "40%", "3,456", "1.2", "12",
    ]  # fmt: skip
    assert "the model ⏎ fell over" in text
    assert text.splitlines()[-1].split() == ["3", "jobs", "1/1", "3,456", "1.2", "12"]


def test_a_table_of_jobs_fits_80_cells_without_the_states() -> None:
    lines = [DONE.model_copy(update={"subject": "小美有五十八支铅笔" * 9, "answer": "x" * 99})]
    text = printed(jobs_table(lines, width=80, with_state=False), 80)
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    for kept in ("00000007", ".987", "75%", "yes"):
        assert kept in text
    assert "nodes" not in text and "tokens" not in text


def test_a_narrow_table_drops_columns_before_it_cuts_ids_states_and_answers() -> None:
    lines = [DONE.model_copy(update={"answer": "one two three four five six"}), FAILED]
    text = printed(jobs_table(lines, width=60), 60)
    assert max(cell_len(line) for line in text.splitlines()) <= 60
    assert "What is 1 + 1?" in text and ".987" not in text
    text = printed(jobs_table(lines, width=40), 40)
    assert max(cell_len(line) for line in text.splitlines()) <= 40
    assert "What is" not in text and "…" not in text
    assert text.split()[4:] == [  # below the headings and the rule
        "00000007", "succeeded", "one", "two", "three", "four", "five", "six",
        "00000008", "failed", "the", "model", "⏎", "fell", "over", "2", "jobs",
    ]  # fmt: skip


def test_counts_read_as_words() -> None:
    assert counts({}) == "0 jobs"
    assert counts({"queued": 1}) == "1 job: 1 queued"
    assert counts({"queued": 1, "succeeded": 1200}) == "1,201 jobs: 1 queued, 1,200 succeeded"
    assert progress([DONE, RUNNING]) == "2 jobs: 1 running, 1 succeeded; 3,456 tokens"


def test_an_event_is_one_line() -> None:
    assert event(DONE) == "00000007  succeeded  2  (.987, 75% of the vote)"
    assert event(FAILED) == "00000008  failed     the model ⏎ fell over"
    assert event(RUNNING) == "00000009  running"


def test_each_change_of_a_state_is_reported_once() -> None:
    waiting = status(7)
    assert changed([], [waiting, RUNNING]) == [RUNNING]
    assert changed([waiting, RUNNING], [waiting, RUNNING]) == []
    assert changed([waiting, RUNNING], [DONE, RUNNING]) == [DONE]


def test_a_job_under_way_shows_how_far_it_is() -> None:
    assert "running, attempt 2, 8 of 16 rollouts" in heading(RUNNING)[0].plain
    assert "#####-----" in printed(live_view([RUNNING, DONE], width=100, height=20))


def test_a_live_view_of_many_jobs_keeps_to_the_screen_and_shows_those_running() -> None:
    lines = [*(status(100 + i) for i in range(50)), RUNNING, DONE]
    text = printed(live_view(lines, width=100, height=12), 100)
    assert len(text.splitlines()) <= 12
    assert "00000009" in text
    assert "52 jobs: 50 queued, 1 running, 1 succeeded" in text


RESULT = JobResult(
    job_id="x", kind="reasoning", state="succeeded", strategy="step", stop_reason="decided",
    rollouts=9, nodes=40, generated_tokens=1234, prompt_tokens=200, cached_tokens=150,
    seconds=1.5, expected="12", correct=False,
    answers=(
        Answer(rank=1, text="29", normalised="29", confidence=0.99, votes=7, share=0.8,
               output="The answer is 29.", thought="Step 1\nStep 2"),
        Answer(rank=2, text="28", normalised="28", confidence=0.9, votes=2, share=0.2,
               output="The answer is 28.", thought="Step 1"),
    ),
)  # fmt: skip


def test_a_result_begins_with_its_answer() -> None:
    text = printed(result_report(RESULT))
    assert text.splitlines()[0] == "The answer is 29."
    assert [line.split() for line in text.splitlines() if line.startswith("   ")] == [
        ["1", "29", ".990", "7", "80%"],
        ["2", "28", ".900", "2", "20%"],
    ]
    assert "expected 12: wrong" in text
    assert "weighted" not in text
    assert "75% from the prefix cache" in text
    assert "the vote was decided" in text
    assert "Step 1" not in text
    assert "Step 1\nStep 2" in printed(result_report(RESULT, thought=True))


def test_a_result_says_what_its_votes_weigh_and_where_its_confidence_stands() -> None:
    weighted = {"vote": "weighted", "sharpness": 128.0, "confidence_quantile": 0.25}
    text = printed(result_report(RESULT.model_copy(update=weighted)))
    assert "votes weighted by confidence^128" in text
    assert "higher than in 25% of the model's latest jobs" in text
    assert weighting("weighted", 1.0) == "votes weighted by confidence"
    assert weighting("weighted", 2.0, "step", spread=1.0, reference=0.0).endswith("by step^2")
    # A calibrated profile's.
    said = weighting("weighted", 2.0, "weakest-line", 3.88, -6.69)
    assert said == "votes weighted by (weakest-line/0.00124)^0.515, 1 at most"
    assert weighting("best", 1.0) == "ranked by the most confident rollout"
    assert weighting("vote", None) == weighting(None, None) == ""


def test_a_result_without_an_answer_says_what_became_of_the_job() -> None:
    none = RESULT.model_copy(update={"answers": (), "state": "cancelled"})
    assert printed(result_report(none)).splitlines()[0] == "cancelled: no answer"
    error = none.model_copy(
        update={"state": "failed", "error_type": "ModelRefused", "error": "no model"}
    )
    assert printed(result_report(error)).splitlines()[0] == "failed: ModelRefused: no model"


def test_thoughts_are_left_out_of_json_unless_asked_for() -> None:
    assert all("thought" not in answer for answer in result_json(RESULT)["answers"])
    assert all(answer["thought"] for answer in result_json(RESULT, thought=True)["answers"])


COLUMNS = ("count", "text", "values", "at", "flag", "nothing")
ROWS = [(Decimal(5), "a\x1b[31m,\nb", [1, 2.5, None], NOW, True, None)]


def test_rows_are_a_table_with_safe_cells() -> None:
    text = printed(rows_table(COLUMNS, ROWS))
    assert "\x1b" not in text
    assert "a\ufffd[31m, ⏎ b" in text
    assert "[1, 2.5, null]" in text
    assert "2026-01-02 03:04:05+00:00" in text
    # What was rounded keeps its zeros, so that digits stand below each other.
    rounded = [(Decimal("0.230"),), (Decimal("10.629"),), (Decimal("2.0000000000000000"),)]
    lines = printed(rows_table(("value",), rounded)).splitlines()
    assert [line.strip() for line in lines[-3:]] == ["0.230", "10.629", "2"]


def test_rows_that_do_not_fit_have_a_line_for_each_column() -> None:
    columns = ["job_id", "text", "average"]
    rows = [[UUID(int=7), "one two\n\x1b[2J" + "x" * 60, Decimal("2.5000000")]]
    assert not too_wide(columns, rows, 80) and too_wide(columns, rows, 60)
    assert not too_wide(columns, rows, None) and too_wide(
        columns, [[*rows[0][:1], "x" * 999, 1]], None
    )
    text = printed(Group(*rows_expanded(columns, rows, width=50)), 50)
    assert text.splitlines() == [
        "-[ 1 ]" + "-" * 44,
        "job_id  | 00000000-0000-0000-0000-000000000007",
        "text    | one two",
        "        | \ufffd[2J" + "x" * 36,
        "        | " + "x" * 24,
        "average | 2.5",
    ]


def test_rows_are_csv_that_reads_back() -> None:
    heading_, row = csv.reader(io.StringIO(rows_csv(COLUMNS, ROWS)))
    assert heading_ == list(COLUMNS)
    assert row[:3] == ["5", "a\x1b[31m,\nb", "[1, 2.5, null]"]
    assert row[5] == ""


def test_rows_are_objects_that_json_can_hold() -> None:
    odd = [(Decimal("1.5"), float("nan"), b"\x00\xff", UUID(int=1), Decimal("NaN"), {"a": NOW})]
    for rows in (ROWS, odd):
        (row,) = rows_json(COLUMNS, rows)
        assert list(row) == list(COLUMNS)
        json.dumps(row, allow_nan=False)
    assert rows_json(COLUMNS, ROWS)[0]["count"] == 5
    assert rows_json(COLUMNS, odd)[0]["values"] == "00ff"


def test_findings_say_how_to_fix_what_is_wrong() -> None:
    good, bad = (
        Finding("Postgres", True, "18.4", ""),
        Finding("Redis", False, "no answer", "run marco up"),
    )
    text = findings_text([good, bad]).plain
    assert "run marco up" in text
    assert text.endswith("1 of 2 wrong.")
    assert findings_text([good]).plain.endswith("All well.")


def test_next_steps_name_the_job_and_the_program_as_it_was_started() -> None:
    text = next_steps(".venv/bin/marco", UUID(int=0xABCD1234))
    assert ".venv/bin/marco show abcd1234 --full" in text
    assert "show" not in next_steps("marco", None)


def test_next_steps_name_the_example_file_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert 'marco submit --question "Tom' in next_steps("marco", None)
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert "marco submit examples/batch.jsonl" in next_steps("marco", None)
