"""The first contact: whatever Python and machine it meets, ops/bootstrap.py says what to do."""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ops.install import host
from ops.install.targets import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ops" / "bootstrap.py"


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap_script", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _python_that_says(answer: str, path: Path) -> str:
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return str(path)


def test_very_old_pythons_can_read_it() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 4))


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ("CPython 3 11 0", True),
        ("CPython 3 13 0", True),
        ("CPython 3 13 1", False),  # free-threaded: other wheels
        ("CPython 3 10 0", False),
        ("CPython 3 14 0", False),
        ("PyPy 3 11 0", False),
        ("", False),
    ],
)
def test_which_pythons_will_do(bootstrap: ModuleType, answer: str, fits: bool) -> None:
    assert bootstrap.supported(answer) is fits


def test_another_python_on_path_helps_out(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _python_that_says("CPython 3 9 0", tmp_path / "python3")
    _python_that_says("CPython 3 11 0", tmp_path / "python3.11")
    monkeypatch.delenv("MARCO_PYTHON", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(sys, "executable", old)
    assert bootstrap.find_python() == "python3.11"


def test_without_a_python_that_will_do_it_says_what_to_set(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _python_that_says("CPython 3 9 0", tmp_path / "python3")
    monkeypatch.setattr(sys, "executable", old)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MARCO_PYTHON", raising=False)
    with pytest.raises(SystemExit, match=r"3\.11, 3\.12 or 3\.13.*(\n.*)*MARCO_PYTHON"):
        bootstrap.find_python()
    monkeypatch.setenv("MARCO_PYTHON", old)
    with pytest.raises(SystemExit, match=f"MARCO_PYTHON={old} is not"):
        bootstrap.find_python()


def test_help_needs_nothing_and_names_every_target() -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), "help"], capture_output=True, text=True, check=True
    )
    shown = set(re.findall(r"^  ([\w-]+) ", done.stdout, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert shown == set(phony.group(1).split()) == {*COMMANDS, "install", "help"}


def test_an_unknown_target_is_refused() -> None:
    command = [sys.executable, str(SCRIPT), "demmo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'demmo'" in done.stderr


def _no_glibc(_: str) -> str:
    raise ValueError("unrecognized configuration name")


@pytest.mark.parametrize(
    ("owner", "name", "value", "reason"),
    [
        (sys, "platform", "darwin", "they are Linux programs"),
        (platform, "machine", lambda: "aarch64", "aarch64"),
        (os, "confstr", _no_glibc, "musl"),
        (os, "confstr", lambda _: "glibc 2.17", "glibc is 2.17"),
    ],
)
def test_where_the_embedded_services_cannot_run_real_ones_do(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, value: object, reason: str
) -> None:
    monkeypatch.setattr(owner, name, value)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1/0")
    with pytest.raises(SystemExit) as told:
        host.require_usable()
    assert reason in str(told.value)
    assert "Set DATABASE_URL to" in str(told.value)
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1/marco")
    assert host.require_usable() is False
