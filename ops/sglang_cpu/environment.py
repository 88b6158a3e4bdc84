"""The virtual environment of the SGLang server: `.marco/sglang-venv`, 1.6 GB, made once."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from marco_search.errors import LocalServiceFailed
from ops.install import pip

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).with_name("requirements.lock")
VENV = ROOT / ".marco" / "sglang-venv"
PYTHON = VENV / "bin" / "python"
_STAMP = VENV / "marco-install"
_FREE_GB = 4


def ensure() -> Path:
    """The environment's Python, after installing what its lock says if need be.

    Raises LocalServiceFailed, with the reason, where it can't be built.
    """
    wanted = hashlib.sha256(f"{sys.version_info[:2]}".encode() + LOCK.read_bytes()).hexdigest()
    if _STAMP.exists() and _STAMP.read_text() == wanted and PYTHON.exists():
        return PYTHON
    if sys.platform != "linux":
        raise LocalServiceFailed("the SGLang server runs on Linux only")
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.parent.mkdir(exist_ok=True)
    if shutil.disk_usage(VENV.parent).free < _FREE_GB * 10**9:
        raise LocalServiceFailed(f"{VENV.parent} has less than {_FREE_GB} GB free")
    print(f"Installing SGLang's CPU environment into {VENV} (a few minutes, once)", flush=True)
    try:
        pip.install(pip.create_environment(VENV), ["-r", str(LOCK)])
    except SystemExit as error:
        raise LocalServiceFailed(f"SGLang's CPU environment can't be installed: {error}") from None
    _check_torch()
    _STAMP.write_text(wanted)
    return PYTHON


def _check_torch() -> None:
    check = "import torch; assert torch.version.cuda is None, 'it is a CUDA build'"
    done = subprocess.run([str(PYTHON), "-c", check], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise LocalServiceFailed(f"torch can't be used on this CPU: {' '.join(said)}")
