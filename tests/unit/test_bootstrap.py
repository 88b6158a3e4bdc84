"""The first contact: whatever Python and machine it meets, ops/bootstrap.py says what to do."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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


def _python_that_ends_with(status: int, path: Path) -> str:
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_very_old_pythons_can_read_it() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 4))


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ("", True),
        ("sys.version_info = (3, 14, 0)", True),
        ("sysconfig.get_config_var = lambda name: 1", False),  # free-threaded: other wheels
        ("sys.version_info = (3, 10, 0)", False),
        ("sys.version_info = (3, 15, 0)", False),
        ("platform.python_implementation = lambda: 'PyPy'", False),
    ],
)
def test_which_pythons_will_do(bootstrap: ModuleType, change: str, fits: bool) -> None:
    probe = f"import platform, sys, sysconfig\n{change}\n{bootstrap.PROBE % (bootstrap.SUPPORTED,)}"
    done = subprocess.run([sys.executable, "-c", probe], check=False)
    assert (done.returncode == 0) is fits


def test_another_python_on_path_helps_out(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _python_that_ends_with(1, tmp_path / "python3")
    _python_that_ends_with(0, tmp_path / "python3.11")
    monkeypatch.delenv("MARCO_PYTHON", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(sys, "executable", old)
    assert bootstrap.find_python() == "python3.11"


def test_without_a_python_that_will_do_it_says_what_to_set(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _python_that_ends_with(1, tmp_path / "python3")
    monkeypatch.setattr(sys, "executable", old)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MARCO_PYTHON", raising=False)
    with pytest.raises(SystemExit, match=r"3\.11 to 3\.14.*(\n.*)*MARCO_PYTHON"):
        bootstrap.find_python()
    monkeypatch.setenv("MARCO_PYTHON", old)
    with pytest.raises(SystemExit, match=f"MARCO_PYTHON={old} is not"):
        bootstrap.find_python()


def test_no_process_compiles_what_another_has_compiled(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "module.py").touch()
    env = bootstrap.target_environment(str(tmp_path)) | {"PYTHONPYCACHEPREFIX": ""}
    subprocess.run([sys.executable, "-c", "import module"], cwd=tmp_path, env=env, check=True)
    assert list(tmp_path.glob("__pycache__/module.*.pyc"))


def test_help_needs_nothing_and_names_every_target() -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), "help"], capture_output=True, text=True, check=True
    )
    shown = set(re.findall(r"^  ([\w-]+) ", done.stdout, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^TARGETS = (.*)$", makefile, re.MULTILINE)
    assert targets
    assert shown == {*targets.group(1).split(), "help"}


def test_fuzz_takes_seconds_and_words() -> None:
    command = ["make", "-n", "fuzz", "SECONDS=5", "ARGS=job_line answer"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "fuzz job_line answer --seconds 5" in done.stdout


def test_an_unknown_target_is_refused() -> None:
    command = [sys.executable, str(SCRIPT), "demmo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'demmo'" in done.stderr
