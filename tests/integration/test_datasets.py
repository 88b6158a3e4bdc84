"""`marco dataset` on jobs that the pocket model answered through the queue's own runner."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from uuid import UUID

import psycopg
import pytest

from marco_search import pocket
from marco_search import settings as settings_module
from marco_search.cli.main import main
from marco_search.export.tables import Filter
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.learning import samples, traces
from marco_search.learning.manifest import broken, read, sha256
from marco_search.learning.traces import Reader
from marco_search.runtime import open_runtime
from marco_search.search.branches import MARCO_O1
from marco_search.settings import Settings
from marco_search.store.db import Database
from tests.integration import toys
from tests.integration.toys import insert, open_database, question, runner, settings_for
from tests.toy import ToyRuntime

PROBLEMS = 6


@dataclass(frozen=True)
class Answered:
    """A database with jobs that have ended, in the order of the problems."""

    url: str
    database: Database
    jobs: list[UUID]


def problems() -> Iterator[ReasoningJob]:
    for number, row in enumerate(pocket.held_out("heldout_en")[:PROBLEMS]):
        yield ReasoningJob(
            question=row["question"],
            expected=str(row["answer"]) if number else None,
            tenant="other" if number == 1 else None,
            options=SearchOptions(rollouts=8, early_stop=False, seed=number),
        )


@pytest.fixture(scope="module")
def answered(module_database_url: str) -> Iterator[Answered]:
    url = module_database_url
    with open_database(url) as database, closing(open_runtime(Settings())) as opened:
        jobs = insert(database, *problems())
        works = runner(settings_for(url, "redis://127.0.0.1:1/0"), database, opened)
        for _ in jobs:
            works.run_next()
        yield Answered(url, database, [job.id for job in jobs])


def marco(url: str, *words: str) -> CompletedProcess[str]:
    """The command on the database at `url`, in this process: libraries are loaded once."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("DATABASE_URL", url)
        settings_module.load.cache_clear()
        code = main(words)
    settings_module.load.cache_clear()
    return CompletedProcess(words, code, *(_written(stream) for stream in (out, err)))


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def made(answered: Answered, folder: Path, *more: str) -> dict[str, Any]:
    done = marco(answered.url, "dataset", "from-traces", str(folder), "--json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sample_is_the_best_path_of_a_right_job_as_the_trail_has_it(
    answered: Answered, tmp_path: Path
) -> None:
    manifest = made(answered, tmp_path / "set", "--verified")
    counts = manifest["counts"]
    assert counts["in"] == PROBLEMS - 1  # of the other tenant none
    assert counts["out"] == counts["in"] - sum(counts["dropped"].values()) > 0
    assert counts["dropped"]["unverified"] == 1  # without a label
    found = list(samples.read(tmp_path / "set"))
    with psycopg.connect(answered.url) as conn:
        rows = conn.execute(
            "SELECT s.sample_id, s.text, s.job_id::text, s.rollout_id, a.prompt, j.correct"
            " FROM audit.dataset_samples AS s JOIN audit.jobs AS j USING (job_id)"
            " JOIN audit.attempts AS a USING (job_id) WHERE s.manifest_sha256 = %s"
            " ORDER BY s.job_id",
            [manifest["manifest_sha256"]],
        ).fetchall()
    assert len(found) == len(rows) == counts["out"]
    for sample, (row_id, text, job, rollout, prompt, correct) in zip(found, rows, strict=True):
        about = sample.provenance
        assert (sample.id, about["job"], about["rollout"]) == (row_id, job, rollout)
        assert sample.response == text.rstrip()
        assert all(m["content"] in prompt for m in sample.prompt) and prompt.endswith("<Thought>\n")
        assert sample.response.startswith("<Thought>") and sample.response.endswith("</Output>")
        assert correct and about["verified"] and sample.tenant == "default"


def test_a_data_set_is_what_its_manifest_says(answered: Answered, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    made(answered, folder, "--all-tenants")
    assert {s.tenant for s in samples.read(folder)} == {"default", "other"}
    assert broken(folder, read(folder)) == []
    with (folder / "samples.jsonl").open("a") as file:
        file.write("{}")
    assert broken(folder, read(folder)) == ["samples.jsonl"]
    again = marco(answered.url, "dataset", "from-traces", str(folder))
    empty = marco(answered.url, "dataset", "from-traces", str(folder / "all"), "--model", "")
    assert empty.returncode == 2 and "--model is empty" in empty.stderr
    assert again.returncode == 2 and "already exists" in again.stderr


def test_a_line_leads_back_to_its_tree(answered: Answered, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    manifest = made(answered, folder)
    sample = next(samples.read(folder))
    words = ("dataset", "trace", sample.id[:10], "--folder", str(folder))
    done = marco(answered.url, *words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    origin = next(
        o
        for o in found["origins"]
        if o["dataset"]["manifest_sha256"] == manifest["manifest_sha256"]
    )
    assert (origin["job"], origin["status"]) == (sample.provenance["job"], "valid")
    (path,) = origin["paths"]
    assert [0, *(n["node_id"] for n in path["nodes"])] == sample.provenance["nodes"]
    assert "".join(n["text"] for n in path["nodes"]).strip() in sample.response
    assert found["holds"] and origin["unchanged"] and origin["manifest_holds"]
    forged = read(folder) | {"name": "forged"}
    (folder / "manifest.json").write_text(json.dumps(forged | {"manifest_sha256": sha256(forged)}))
    assert "manifest.json is not that of" in marco(answered.url, *words).stdout
    (folder / "samples.jsonl").write_text("")
    done = marco(answered.url, *words)
    assert done.returncode == 9 and "samples.jsonl is not as the manifest says" in done.stdout
    done = marco(answered.url, "dataset", "trace", sample.id, "--tenant", "other")
    assert done.returncode == 2 and "no data set of these jobs" in done.stderr
    assert "named" in toys.marco(answered.url, "dataset", "list").stdout


def test_a_right_path_counts_also_where_it_lost_the_vote(
    answered: Answered, tmp_path: Path
) -> None:
    voted = made(answered, tmp_path / "voted", "--verified")["counts"]
    right = made(answered, tmp_path / "right", "--verified", "--answer", "expected")["counts"]
    assert "wrong" in voted["dropped"] and "wrong" not in right["dropped"]
    found = {s.provenance["job"] for s in samples.read(tmp_path / "right")}
    with psycopg.connect(answered.url) as conn:
        rows = conn.execute(
            "SELECT DISTINCT j.job_id::text FROM audit.jobs AS j JOIN audit.rollouts AS r"
            " USING (job_id) WHERE j.tenant = 'default' AND r.answer = j.expected"
        ).fetchall()
    assert found == {row[0] for row in rows}


def test_a_prompt_that_can_not_be_made_again_is_left_out(
    answered: Answered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARCO_OVERRIDES", '{"system_prompt": "Think."}')
    counts = made(answered, tmp_path / "set")["counts"]
    assert counts["dropped"]["profile"] == counts["in"] - counts["dropped"].get("wrong", 0)
    assert counts["out"] == 0


def test_problems_of_an_evaluation_set_are_left_out(answered: Answered, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    asked = next(problems()).question
    held_out.write_text(json.dumps({"question": asked, "answer": 1}))
    counts = made(answered, tmp_path / "set", "--held-out", str(held_out))["counts"]
    assert counts["dropped"]["contaminated"] == 1


def test_what_becomes_of_reflections(answered: Answered, tmp_path: Path) -> None:
    kinds = ("mended", "kept", "redo")
    sets = {}
    for kind in kinds:
        made(answered, tmp_path / kind, "--reflection", kind)
        sets[kind] = list(samples.read(tmp_path / kind))
    phrase = MARCO_O1.reflection
    assert any(phrase in s.response for s in sets["kept"])
    for whole, redo in zip(sets["kept"], sets["redo"], strict=True):
        assert whole.provenance["nodes"] == redo.provenance["nodes"]
        assert (
            redo.response
            == MARCO_O1.opening
            + (whole.response.removeprefix(MARCO_O1.opening).rpartition(f"{phrase}\n")[2])
        )
    for sample in sets["mended"]:
        if sample.provenance["reflected"]:
            first = sample.response.partition(phrase)[0].strip()
            answer = sample.provenance["answer"]
            assert not first.endswith(f"={answer}.")


def test_a_pair_parts_where_the_model_was_unsure(answered: Answered, tmp_path: Path) -> None:
    manifest = made(answered, tmp_path / "pairs", "--pairs", "--reflection", "kept")
    found = list(samples.read_pairs(tmp_path / "pairs"))
    assert len(found) == manifest["counts"]["out"] > 0
    assert any(pair.provenance["fork"] for pair in found)
    for pair in found:
        (chosen,), (rejected,) = pair.chosen, pair.rejected
        won, lost, shared = chosen["content"], rejected["content"], pair.shared_prefix
        assert won[:shared] == lost[:shared] and won[shared] != lost[shared]
        assert pair.provenance["answer"] != pair.provenance["rejected_answer"]
        if fork := pair.provenance["fork"]:
            assert fork["taken"] != fork["passed_over"] and fork["position"] >= 0


def test_a_tree_may_make_several_pairs(answered: Answered, tmp_path: Path) -> None:
    words = ("--pairs", "--reflection", "kept", "--pairs-per-job", "3", "--near-duplicate", "1")
    made(answered, tmp_path / "pairs", *words)
    found = list(samples.read_pairs(tmp_path / "pairs"))
    sides = Counter(p.provenance["job"] for p in found)
    assert 1 < max(sides.values()) <= 3
    losers = {(p.provenance["job"], p.provenance["rejected"]["rollout"]) for p in found}
    assert len(losers) == len(found)


def test_jobs_are_read_a_few_at_a_time(answered: Answered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_JOBS_AT_ONCE", 2)
    with answered.database.snapshot() as conn:
        reader = Reader(conn)
        next(reader.samples(Filter()))
        assert reader.jobs <= 4 < PROBLEMS


def test_nothing_is_made_of_a_trail_that_was_changed(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, "redis://127.0.0.1:1/0")
    jobs = insert(database, *(question(f"What is {n} + 1?") for n in range(3)))
    for _ in jobs:
        runner(settings, database, ToyRuntime()).run_next()
    folder = tmp_path / "set"
    words = ("dataset", "from-traces", "--min-share", "0", "--name", "toys")
    assert marco(database_url, *words, str(folder)).returncode == 0
    sample = next(s for s in samples.read(folder) if s.provenance["job"] == str(jobs[0].id))
    assert marco(database_url, "redact", str(jobs[0].id), "--yes").returncode == 0
    # The id is a hash of texts: it must not tell what they were.
    done = marco(database_url, "dataset", "trace", sample.id)
    assert done.returncode == 2 and "redacted since" in done.stderr
    with psycopg.connect(database_url) as conn:
        query = "SELECT sample_id FROM audit.dataset_samples WHERE job_id = %s"
        ((kept,),) = conn.execute(query, [jobs[0].id])
    assert "default: redacted" in marco(database_url, "dataset", "trace", kept).stdout
    done = marco(database_url, *words, str(tmp_path / "again"))
    assert "left out, redacted: 1" in done.stdout, done.stderr
    other = next(s for s in samples.read(folder) if s.provenance["job"] == str(jobs[1].id))
    with psycopg.connect(database_url) as conn:
        conn.execute("SET session_replication_role = replica")
        query = "UPDATE dataset_samples SET node_ids = node_ids[1:1] WHERE job_id = %s"
        conn.execute(query, [jobs[1].id])
        conn.commit()
        done = marco(database_url, "dataset", "trace", other.id)
        assert done.returncode == 9 and "valid" in done.stdout
        conn.execute("SET session_replication_role = replica")
        conn.execute("UPDATE nodes SET text = 'x' WHERE job_id = %s", [jobs[1].id])
    done = marco(database_url, *words, str(tmp_path / "other"))
    assert done.returncode == 9 and str(jobs[1].id) in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"set", "again"}


def peak(folder: Path, count: int) -> int:
    """KiB that reading `count` made-up conversations takes at most."""
    file, made = folder / f"{count}.jsonl", folder / f"{count}"
    with file.open("w") as rows:
        rows.writelines(
            f'{{"prompt": "What comes after {n}?", "completion": "After {n} comes {n + 1}."}}\n'
            for n in range(count)
        )
    script = (
        "import resource, sys; from marco_search.cli.main import main\n"
        "folder, file = sys.argv[1:]\n"
        "main(['dataset', 'instructions', folder, file, '--near-duplicate', '1'])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, made, file], capture_output=True, text=True, check=True
    )
    assert f"read: {count:,} in" in done.stdout
    return int(done.stdout.split()[-1])


@pytest.mark.timeout(600)  # seconds of a processor that others may want
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    # docs/datasets.md has what near duplicates and mixing take, which are slower.
    assert peak(tmp_path, 100_000) < 1.13 * peak(tmp_path, 20_000)
