"""README and docs/cli.md name what exists: commands, settings, exit codes, files, code."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from marco_search.cli import main as main_module
from marco_search.cli.main import COMMANDS, cli
from marco_search.metrics import METRICS
from marco_search.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CLI_PAGE = (ROOT / "docs" / "cli.md").read_text()
PAGES = [*ROOT.glob("[!C]*.md"), ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")]
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


def leaves(group: click.Group, path: str = "") -> Iterator[str]:
    """The commands that print something: of a group those in it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from leaves(found, f"{path}{name} ")
        else:
            yield path + name


def test_the_page_says_what_each_command_prints_as_json() -> None:
    rows = re.findall(r"^\| (`[^|]*) \|", section(CLI_PAGE, "Output"), re.MULTILINE)
    named = set[str]()
    for row in rows:
        first, *others = re.findall("`([a-z -]+?)(?: [-A-Z][^`]*)?`", row)
        group = first.partition(" ")[0]  # "`batch cancel`, `restart`" are both of batch
        named |= {first, *others, *(f"{group} {other}" for other in others)}
    assert set(leaves(cli)) <= named, set(leaves(cli)) - named


START = r"(?:^|\$ |\(|&& |\| |[A-Z_]+=\S+ )(?:\S*/)?"
"""What may stand before a command in a line of the shell."""


def typed(text: str) -> Iterator[list[str]]:
    """The words of every `marco` command in the code of a page or of a command's help."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^ {4}(marco .*)", text, re.MULTILINE)
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL):
        lines += block.splitlines()
    lines += re.findall(r"`(marco [a-z][^`|]*)`", text)
    for line in lines:
        for command in re.findall(START + r"marco ((?:'[^']*'|\"[^\"]*\"|[^|&;<>()#])*)", line):
            yield shlex.split(command)


def named(words: list[str]) -> click.Command:
    """The command that these words begin with; its own words are taken away."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and (name := words.pop(0)) != "help":
        found = command.get_command(click.Context(command), name)
        assert found is not None, (name, words)
        command = found
    return command


HELP = {name: named(name.split()).help or "" for name in leaves(cli)}


@pytest.mark.parametrize("source", [*PAGES, *HELP], ids=str)
def test_commands_have_the_options_they_are_given(source: Path | str) -> None:
    text = HELP[source] if isinstance(source, str) else source.read_text()
    for words in typed(text):
        command = named(words)
        known = {option for parameter in command.params for option in parameter.opts}
        known |= {option for parameter in command.params for option in parameter.secondary_opts}
        given = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
        assert given <= known | {"--help"}, (command.name, given - known)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_in_the_pages_imports_what_exists(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) >= (2 if page.name == "README.md" else 0)
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


@pytest.mark.parametrize("start", ["README.md", "docs/index.md"])
def test_every_page_can_be_found_from_the_start(start: str) -> None:
    page = ROOT / start
    links = re.findall(r"\]\(([^)#:]+)", page.read_text())
    linked = {(page.parent / link).resolve() for link in links}
    pages = set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "index.md"}
    assert pages <= linked, pages - linked
