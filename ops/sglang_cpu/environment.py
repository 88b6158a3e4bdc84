"""The virtual environment of the SGLang server, 1.6 GB, in the user's cache folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

from marco_search.errors import LocalServiceFailed
from ops.install import cached, pip

NAME = "sglang-cpu"
LOCK = Path(__file__).with_name("requirements.lock")
_FREE_GB = 4


def installed() -> bool:
    """Whether it was made already."""
    return cached.python_of(NAME, LOCK) is not None


def ensure() -> Path:
    """The environment's Python, after installing what its lock says if need be.

    Raises LocalServiceFailed, with the reason, where it can't be built.
    """
    python = cached.ensure(NAME, LOCK, free_gb=_FREE_GB, refuse=_refuse_cuda)
    check = "import torch; assert torch.version.cuda is None, 'it is a CUDA build'"
    done = subprocess.run([str(python), "-c", check], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise LocalServiceFailed(f"torch can't be used on this CPU: {' '.join(said)}")
    return python


def _refuse_cuda(command: list[str]) -> None:
    """A CUDA build is gigabytes of what no test here can use: seen before it is fetched."""
    (torch,) = [line for line in LOCK.read_text().splitlines() if line.startswith("torch==")]
    if any("cuda" in need or "nvidia" in need for need in pip.needs(command, torch)):
        raise LocalServiceFailed(
            f"pip would install a CUDA build of {torch}: point it to CPU wheels "
            "(PIP_FIND_LINKS or PIP_INDEX_URL)"
        )
