"""`make paper-table` from end to end, on a toy model and a few problems."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marco_search import settings
from marco_search.engine import make_plan
from marco_search.evaluation.statistics import wilson
from marco_search.search.config import SearchConfig
from ops.bench import ablation, paper_table
from ops.bench.paper_table import ENTRIES, MATCHES
from tests.toy import ToyRuntime

SETS = ["--set", "normal-en", "--set", "hard-zh"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MARCO_HOME", str(tmp_path / "home"))
    settings.load.cache_clear()
    yield tmp_path
    settings.load.cache_clear()


def paper(*words: str) -> None:
    runtime = ToyRuntime(["1", "198", "307"])
    paper_table.main(["--problems", "3", *words], runtime=runtime)


def test_the_report_has_every_strategy_and_pair_at_each_budget(folder: Path) -> None:
    docs = folder / "docs"
    paper("--docs", str(docs))
    data = json.loads((docs / "results.json").read_text())
    assert set(data["results"]) == {"250", "400", "800"} and not data["missing"]
    for budget, groups in data["results"].items():
        assert {"pooled", "en", "zh", "normal", "hard", "hard-zh"} <= set(groups)
        for group, found in groups.items():
            n = 3 * {"pooled": 4, "en": 2, "zh": 2, "normal": 2, "hard": 2}.get(group, 1)
            assert set(found) == {"greedy", *ENTRIES}
            for figures in found.values():
                right = round(figures["accuracy"] * n)
                assert (figures["low"], figures["high"]) == pytest.approx(
                    wilson(right, n), abs=1e-4
                )
                assert figures["n"] == n and figures["tokens_per_problem"] > 0
                assert figures["failed"] == 0
            for tree, rivals in MATCHES.items():
                pairs = data["pairs"][budget][group][tree]
                assert set(pairs) == set(rivals)
                for rival, gain in pairs.items():
                    mine, other = found[tree]["accuracy"], found[rival]["accuracy"]
                    assert gain["difference"] == pytest.approx(mine - other, abs=2e-4)
                    assert gain["low"] <= gain["difference"] <= gain["high"]
    text = (docs / "results.md").read_text()
    for part in ("### 400 tokens", "Goals", "Translation", "Open-ended", "stopped early", "failed"):
        assert part in text
    assert (docs / "plots" / "accuracy-over-tokens.svg").exists()
    shutil.rmtree(folder / "home")
    paper("--report", "--docs", str(docs))  # of what was run elsewhere
    assert json.loads((docs / "results.json").read_text()) == data
    assert (docs / "results.md").read_text() == text


def test_parts_are_made_apart_and_the_report_names_what_is_missing(folder: Path) -> None:
    for name in paper_table.study("pocket", "dev11", 1).sets:
        paper("--set", name, "--run", "adaptive", "--no-report")
    files = list(folder.rglob("*.jsonl"))
    assert [f.name for f in files] == ["adaptive.jsonl"] * 4
    before = [f.read_text() for f in files]
    docs = folder / "docs"
    paper("--run", "adaptive", "--docs", str(docs))
    assert [f.read_text() for f in files] == before
    assert "not complete" in (docs / "results.md").read_text()
    found = json.loads((docs / "results.json").read_text())["results"]["250"]["pooled"]
    assert set(found) == {"greedy", "adaptive"}


def test_easy_problems_for_a_weak_model_are_right() -> None:
    problems = paper_table.study("real", "", 300).sets["easy"]
    assert len(problems) == len({p.key for p in problems}) == 300


def test_the_report_has_another_seed_than_the_ablation() -> None:
    assert ablation.SEED != paper_table.SEED


def test_the_tables_of_the_documentation_follow_from_what_was_printed() -> None:
    docs = paper_table.HERE.parents[1] / "docs"
    lines = [json.loads(line) for line in (docs / "ablation.jsonl").read_text().splitlines()]
    page = (docs / "search.md").read_text().replace("**", "")
    assert all(line in page for line in ablation.tables(lines).splitlines() if lines)


def test_every_variant_of_the_ablation_is_a_search() -> None:
    (problem, *_) = ablation.development_split(1)
    runtime = ToyRuntime(["1"])

    def config(study: dict[str, Any], name: str) -> SearchConfig:
        made = make_plan(ablation.recipe(study, name).job(problem), runtime)
        return replace(made.config, profile="")  # it names what is overridden

    for study in ablation.STUDIES.values():
        for name in study["variants"]:
            assert config(study, name) != config(study, study["base"]), name
