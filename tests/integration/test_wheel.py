"""The built wheel: what it installs, in a folder that has packages of the same names.

It is installed into a new environment without anything else. Its dependencies come from the
environment of the tests, through a .pth file: Python does not follow the .pth files in a folder
added so, so the checkout itself can't be imported there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from marco_search.local.programs import purge

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "marco_search", "producer", "worker")
SHADOWS = ("ops", "migrations", "worker", "producer", "tests")
PROGRAM = """
from typing import assert_type

from marco_search import JobResult, Producer, ReasoningJob, solve
from producer import JobHandle
from producer import Producer as SameProducer

job = ReasoningJob(question="What is 17 x 23?")
assert_type(job.question, str)
assert_type(solve(job), JobResult)
with Producer() as producer:
    assert_type(producer, Producer)
    same: SameProducer = producer
    assert_type(producer.submit(job), JobHandle)
    assert_type(producer.wait(producer.submit(job)), JobResult)
ReasoningJob(question=3)
producer.submitt(job)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the package is built from, apart from the checkout: building leaves files behind."""
    copy = tmp_path_factory.mktemp("sources")
    unneeded = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*SOURCES, "migrations"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=unneeded)
        else:
            shutil.copy2(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    built = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(sources)]
    subprocess.run(command, check=True, cwd=built)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path) -> Iterator[Path]:
    """An environment with the wheel, that the embedded servers' account can enter."""
    folder = Path(tempfile.mkdtemp(prefix="marco-wheel-"))
    folder.chmod(0o755)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    options = ["--quiet", "--no-deps", "--no-index", str(wheel)]
    command = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install"]
    subprocess.run([*command, *options], check=True, cwd=folder)
    (site,) = venv.glob("lib/python3.*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    yield venv
    shutil.rmtree(folder)


@pytest.fixture
def project(environment: Path) -> Iterator[Path]:
    """Somebody's folder with packages of their own, none of which can be imported."""
    folder = environment.parent / "project"
    folder.mkdir()
    for name in SHADOWS:
        (folder / name).mkdir()
        text = f'raise ImportError("{name} of the current folder was imported")\n'
        (folder / name / "__init__.py").write_text(text)
    yield folder
    if (folder / ".marco").exists():
        purge(folder / ".marco")
    shutil.rmtree(folder)


def _run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    hidden = ("DATABASE_URL", "REDIS_URL", "PYTHONPATH")
    env = {k: v for k, v in os.environ.items() if k not in hidden and not k.startswith("MARCO_")}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def _processes_in(folder: Path) -> list[str]:
    """Command lines of processes that run from, or work on, `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def _expected(sources: Path) -> set[str]:
    """Every file of the three packages, migrations/ being one of marco_search."""
    links = {"migrations": "marco_search/migrations"}
    found = set()
    for name in ("marco_search", "producer", "worker", "migrations"):
        for path in (sources / name).rglob("*"):
            if path.is_file():
                found.add(f"{links.get(name, name)}/{path.relative_to(sources / name)}")
    assert {f"{name}/py.typed" for name in ("marco_search", "producer", "worker")} <= found
    return found


def test_it_holds_three_packages_with_all_their_files(wheel: Path, sources: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"marco_search", "producer", "worker"}
    assert names == _expected(sources)


def test_the_source_distribution_has_them_too(sources: Path, tmp_path: Path) -> None:
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=sources, check=True, capture_output=True
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert _expected(sources) <= names


def test_the_demo_works_beside_packages_of_the_same_names(environment: Path, project: Path) -> None:
    done = _run(project, environment / "bin" / "marco", "demo", "--rollouts", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing is left running" in done.stdout
    assert _processes_in(environment.parent) == []
    log = (project / ".marco" / "logs" / "worker.log").read_text()
    assert "of the current folder was imported" not in log
    where = "import marco_search, producer, worker; print(marco_search.__file__, worker.__file__)"
    found = _run(project, environment / "bin" / "python", "-P", "-c", where)
    assert found.stdout.count(str(environment)) == 2, found.stdout + found.stderr


def test_types_are_seen_by_users(environment: Path, project: Path) -> None:
    shutil.rmtree(project / "producer")  # theirs would be the one that mypy looks at
    (project / "program.py").write_text(PROGRAM)
    # Which dependencies import for notebooks, and which is a third of the work.
    (project / "mypy.ini").write_text("[mypy]\n[mypy-IPython.*]\nfollow_imports = skip\n")
    python = environment / "bin" / "python"
    options = ["--strict", "--no-incremental", "--python-executable", str(python)]
    done = _run(project, sys.executable, "-m", "mypy", *options, "program.py")
    assert done.returncode == 1, done.stdout + done.stderr
    problems = done.stdout.splitlines()
    assert len(problems) == 3, done.stdout
    assert '"question"' in problems[0] and "[arg-type]" in problems[0]
    assert 'has no attribute "submitt"' in problems[1]
