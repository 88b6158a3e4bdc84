"""`make paper-table` from end to end, on a toy model and a few problems."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from marco_search import settings
from marco_search.evaluation.statistics import wilson
from ops.bench import ablation, paper_table
from ops.bench.paper_table import WINNER
from tests.toy import ToyRuntime

WORDS = ["--problems", "3", "--rollouts", "8"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MARCO_HOME", str(tmp_path / "home"))
    settings.load.cache_clear()
    yield tmp_path
    settings.load.cache_clear()


def paper(*words: str) -> None:
    runtime = ToyRuntime(["1", "198", "307"])
    paper_table.main([*WORDS, *words], runtime=runtime)


def test_the_report_has_every_strategy_with_its_interval(folder: Path) -> None:
    docs = folder / "docs"
    paper("--docs", str(docs))
    data = json.loads((docs / "results.json").read_text())
    for language in ("en", "zh"):
        found = data["results"][language]
        names = {name.partition(",")[0] for name in found}
        assert {"cot", "self-consistency", "best-of-n", "step", WINNER} <= names
        for figures in found.values():
            right = round(figures["accuracy"] * 3)
            assert (figures["low"], figures["high"]) == pytest.approx(wilson(right, 3), abs=1e-4)
            assert figures["n"] == 3 and figures["tokens_per_problem"] > 0
        assert set(found["step"]["test_at"]) == {"1", "8"}
    text = (docs / "results.md").read_text()
    for part in ("English", "Chinese", "Goals", "Translation", "Open-ended", "equal generated"):
        assert part in text
    plots = {f.name for f in (docs / "plots").iterdir()}
    assert {"accuracy-over-tokens.png", "accuracy-over-tokens.svg", "calibration.svg"} <= plots


def test_parts_are_made_apart_and_the_report_names_what_is_missing(folder: Path) -> None:
    paper("--language", "en", "--run", "cot", "--no-report")
    files = list(folder.rglob("*.jsonl"))
    assert [f.name for f in files] == ["cot.jsonl"]
    before = files[0].read_text()
    docs = folder / "docs"
    paper("--language", "en", "--run", "cot", "--docs", str(docs))
    assert files[0].read_text() == before
    assert "not complete" in (docs / "results.md").read_text()
    assert set(json.loads((docs / "results.json").read_text())["results"]["en"]) == {"cot"}


def test_no_seed_of_the_report_is_that_of_the_development_split() -> None:
    seeds = {recipe.options.seed for recipe in paper_table.recipes(8).values()}
    assert ablation.SEED not in seeds


def test_the_tables_of_the_documentation_follow_from_what_was_printed() -> None:
    docs = paper_table.HERE.parents[1] / "docs"
    lines = [json.loads(line) for line in (docs / "ablation.jsonl").read_text().splitlines()]
    page = (docs / "search.md").read_text().replace("**", "")
    assert all(line in page for line in ablation.tables(lines).splitlines())


def test_every_variant_of_the_ablation_is_a_search() -> None:
    (problem, *_) = ablation.development_split(1)
    runtime = ToyRuntime(["1"])
    for study in ablation.STUDIES.values():
        base = ablation.recipe(study, study["base"]).plan(problem, runtime)
        for name in study["variants"]:
            assert ablation.recipe(study, name).plan(problem, runtime).config != base.config, name
