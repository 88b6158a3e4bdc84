"""README and docs/cli.md name what exists: commands, settings, exit codes, files, code."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from marco_search.cli import main as main_module
from marco_search.cli.main import COMMANDS
from marco_search.metrics import METRICS
from marco_search.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CLI_PAGE = (ROOT / "docs" / "cli.md").read_text()
SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text()


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_settings_table_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", SETTINGS_PAGE, re.MULTILINE)
    expected = []
    for field in Settings.model_fields.values():
        default = "" if field.default is None else f"`{field.default}`"
        expected.append((str(field.validation_alias), default))
    assert rows == expected


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(marco_\w+)` \| (.*) \| (.*) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    labels = [", ".join(f"`{label}`" for label in metric.labels) for metric in METRICS]
    expected = zip(METRICS, labels, strict=True)
    assert rows == [(m.name, m.kind, text, m.source, m.help) for m, text in expected]


@pytest.mark.parametrize("text", [README, CLI_PAGE])
def test_every_command_is_listed_and_every_listed_command_exists(text: str) -> None:
    title = "Command line" if text is README else "Commands"
    named = set(re.findall(r"`marco ([a-z]+)", section(text, title)))
    assert named == set(COMMANDS)
    assert set(re.findall(r"^(?:\S*/)?marco ([a-z]+)", text, re.MULTILINE)) <= set(COMMANDS)


def test_the_exit_codes_on_the_page_are_those_of_the_help() -> None:
    page = re.findall(r"^\| (\d+) \|", section(CLI_PAGE, "Exit codes"), re.MULTILINE)
    help_ = re.findall(r"^  (\d+) ", main_module.EXIT_CODES, re.MULTILINE)
    assert page == help_


def test_python_in_the_readme_imports_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        for statement in ast.parse(block).body:
            if isinstance(statement, ast.ImportFrom):
                module = importlib.import_module(str(statement.module))
                for name in statement.names:
                    assert hasattr(module, name.name)


def test_links_and_files_in_the_pages_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(((?!https?:)[^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)
    for path in re.findall(r"examples/[\w.]+", README):
        assert (ROOT / path).exists(), path
    assert "@@" not in README
