"""Environments of other programs: made once per lock, and a reason where they can't be made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from marco_search.errors import LocalServiceFailed
from ops.install import cached, pip
from ops.sglang_cpu import environment


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The environments that were made, in a cache folder of its own; nothing is installed."""
    found: list[Path] = []

    def create(venv: Path) -> list[str]:
        (venv / "bin").mkdir(parents=True)
        found.append(venv)
        return ["pip"]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pip, "create_environment", create)
    monkeypatch.setattr(pip, "install", lambda *given, **named: None)
    return found


def test_an_environment_is_made_once_for_what_its_lock_says(
    made: list[Path], tmp_path: Path
) -> None:
    lock = tmp_path / "lock"
    lock.write_text("a==1\n")
    assert cached.python_of("tool", lock) is None
    first = cached.ensure("tool", lock, free_gb=0)
    assert cached.ensure("tool", lock, free_gb=0) == first == cached.python_of("tool", lock)
    assert first == made[0] / "bin" / "python"
    lock.write_text("a==2\n")
    assert cached.python_of("tool", lock) is None
    assert cached.ensure("tool", lock, free_gb=0) != first
    assert len(made) == 2


def test_one_that_broke_off_is_begun_again(
    made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    lock.write_text("a==1\n")

    def late(*given: object, **named: object) -> None:
        raise subprocess.TimeoutExpired("pip", 240)

    with monkeypatch.context() as broken:
        broken.setattr(pip, "install", late)
        with pytest.raises(LocalServiceFailed, match=r"tool can't be installed: .*timed out"):
            cached.ensure("tool", lock, free_gb=0)
    assert cached.python_of("tool", lock) is None
    cached.ensure("tool", lock, free_gb=0)
    assert len(made) == 2


def test_too_little_space_is_said(made: list[Path], tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("a==1\n")
    with pytest.raises(LocalServiceFailed, match=r"less than 1000000000\.0 GB free"):
        cached.ensure("tool", lock, free_gb=1e9)
    assert made == []


def test_a_cuda_build_of_torch_is_refused_before_it_is_fetched(
    made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pip, "needs", lambda *given: ["filelock", "nvidia-cublas-cu12==12.8"])
    monkeypatch.setattr(pip, "install", lambda *given, **named: pytest.fail("was fetched"))
    with pytest.raises(LocalServiceFailed, match=r"CUDA build of torch==.*point it to CPU wheels"):
        environment.ensure()
    assert not environment.installed()
