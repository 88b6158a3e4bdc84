"""Environments: exactly the lock, once, and whole again after an interruption."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from marco_search.errors import LocalServiceFailed
from ops import bootstrap, environment
from tests.sglang import sglang_cpu as sglang

ROOT = Path(__file__).resolve().parents[2]
STAMP = "marco-install.json"
MAKE = (
    "import sys; from ops import bootstrap; bootstrap.make_environment(sys.argv[1], sys.argv[2:])"
)


def _wheel(folder: Path, name: str, version: str = "1.0", needs: str = "") -> str:
    """Make a wheel of one module and one script. Returns its line in a lock."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "def main():\n    print('works')\n    return 3\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Checkout:
    """Two locks, and the environment that is made from them, in a path that is hard on programs."""

    def __init__(self, root: Path) -> None:
        self.venv = root / ".venv"
        self.lock, self.dev = root / "run.lock", root / "dev.lock"
        self.lock.write_text(_wheel(root, "tiny"))
        self.dev.write_text(_wheel(root, "other"))

    def make(self, *locks: Path) -> Path:
        chosen = [str(lock) for lock in locks or (self.lock,)]
        return Path(bootstrap.make_environment(str(self.venv), chosen))

    def mark(self) -> Path:
        """A file that is gone once the environment was built again."""
        mark = self.venv / "mark"
        mark.touch()
        return mark


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This Python, but `-m venv FOLDER` copies one: to install pip takes three seconds each time.

    Processes that it starts have the real one.
    """
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    script = folder / "python"
    script.write_text(
        "#!/bin/sh\n"
        f'[ "$1 $2" = "-m venv" ] && exec cp -a "{folder}/venv" "$3"\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    script.chmod(0o755)
    return script


@pytest.fixture
def checkout(tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    root = tmp_path / "a 50% check out"
    root.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", root.as_uri())
    monkeypatch.setattr(sys, "executable", str(python))
    return Checkout(root)


def _works(python: Path, module: str) -> bool:
    done = subprocess.run([python, "-c", f"import {module}"], cwd="/", capture_output=True)
    script = subprocess.run([python.with_name(module)], cwd="/", capture_output=True, text=True)
    return (done.returncode, script.returncode, script.stdout) == (0, 3, "works\n")


def _break_python(checkout: Checkout) -> None:
    (checkout.venv / "bin" / "python").unlink()
    (checkout.venv / "bin" / "python").symlink_to("/nonexistent/python")


def _change_lock(checkout: Checkout) -> None:
    checkout.lock.write_text("# changed\n" + checkout.lock.read_text())


def _garble_stamp(checkout: Checkout) -> None:
    (checkout.venv / STAMP).write_text("{")


def test_it_is_made_once_added_to_and_built_again_when_in_doubt(checkout: Checkout) -> None:
    assert _works(checkout.make(), "tiny")
    mark = checkout.mark()
    checkout.make()
    python = checkout.make(checkout.lock, checkout.dev)
    assert _works(python, "tiny") and _works(python, "other")
    checkout.make()  # has all it needs
    checkout.dev.write_text("# changed\n" + checkout.dev.read_text())
    checkout.make()  # does not need what changed
    assert mark.exists() and _works(python, "other")
    for change in (_break_python, _change_lock, _garble_stamp):
        mark = checkout.mark()
        change(checkout)
        assert _works(checkout.make(), "tiny")
        assert not mark.exists(), change


def test_a_package_with_another_hash_is_refused_and_the_next_run_starts_over(
    checkout: Checkout,
) -> None:
    good = checkout.lock.read_text()
    checkout.lock.write_text(re.sub(r"sha256:....", "sha256:0000", good))
    with pytest.raises(SystemExit, match=r"(?s)DO NOT MATCH THE HASHES.*starts over"):
        checkout.make()
    checkout.lock.write_text(good)
    assert _works(checkout.make(), "tiny")


def test_two_at_once_and_one_that_is_killed(checkout: Checkout) -> None:
    command = [sys.executable, "-c", MAKE, str(checkout.venv), str(checkout.lock)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    with start() as killed:
        while not checkout.venv.exists():
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert not (checkout.venv / STAMP).exists()
    with start() as first, start() as second:
        output = first.communicate()[1] + second.communicate()[1]
    assert (first.returncode, second.returncode) == (0, 0), output
    assert output.count("making") == 1
    assert _works(checkout.make(), "tiny")


def test_pip_is_kept_from_installing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/etc/pip.conf")
    env = bootstrap.pip_environment()
    assert "PIP_TARGET" not in env
    assert env["PIP_USER"] == "0"
    assert env["PIP_CONFIG_FILE"] == "/etc/pip.conf", "where packages come from is the user's"


def test_the_locks_hold_every_direct_pin_with_hashes() -> None:
    files = [Path(lock) for lock in bootstrap.locks(True)]
    assert len(files) == 3
    files.append(ROOT / "ops" / "requirements-finetune.lock")
    # Whichever build of PyTorch pip takes.
    locked = {(ROOT / "ops" / "requirements-torch.lock").read_text().strip()}
    for file in files:
        text = file.read_text().replace("\\\n", " ")
        for line in re.findall(r"^[^#\n].*$", text, re.MULTILINE):
            assert re.match(r"[a-z0-9.-]+==\S+ (; [^#]+)?( +--hash=sha256:[0-9a-f]{64})+$", line)
            locked.add(line.split()[0])
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = described["project"]["dependencies"] + described["build-system"]["requires"]
    pins += [
        pin for extra in described["project"]["optional-dependencies"].values() for pin in extra
    ]
    assert {re.sub(r"\[.*\]", "", pin.partition(";")[0]) for pin in pins} <= locked, "ops/lock.sh"


def test_environments_of_other_programs_lie_in_the_cache_folder(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(LocalServiceFailed, match=r"less than 1000000000\.0 GB free"):
        environment.ensure("tool", checkout.lock, free_gb=1e9)
    first = environment.ensure("tool", checkout.lock, free_gb=0)
    assert _works(first, "tiny")
    assert environment.ensure("tool", checkout.lock, free_gb=0) == first
    _change_lock(checkout)
    assert environment.folder("tool", checkout.lock) not in first.parents
    checkout.lock.write_text("absent==1\n")
    with pytest.raises(LocalServiceFailed, match=r"(?s)tool can't.*absent==1.*check the network"):
        environment.ensure("tool", checkout.lock, free_gb=0)


def test_a_cuda_build_of_torch_is_refused_before_it_is_fetched(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (pin,) = re.findall(r"^torch==(\S+)$", sglang.LOCK.read_text(), re.MULTILINE)
    _wheel(checkout.venv.parent, "torch", pin, "Requires-Dist: nvidia-cublas-cu12==12.8\n")
    with pytest.raises(LocalServiceFailed, match=r"CUDA build of torch==.*point it to CPU wheels"):
        sglang.ensure_environment()
    assert not (tmp_path / "cache").exists()
