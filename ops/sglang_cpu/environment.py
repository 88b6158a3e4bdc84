"""The virtual environment of the SGLang server, 1.6 GB, in the user's cache folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from marco_search.errors import LocalServiceFailed
from ops import environment

LOCK = Path(__file__).with_name("requirements.lock")


def ensure() -> Path:
    """The environment's Python, after installing what its lock says if need be.

    Raises LocalServiceFailed, with the reason, where it can't be built.
    """
    if not environment.folder("sglang-cpu", LOCK).exists():
        _refuse_cuda()
    python = environment.ensure("sglang-cpu", LOCK, free_gb=4)
    check = "import torch; assert torch.version.cuda is None, 'it is a CUDA build'"
    done = subprocess.run([str(python), "-c", check], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise LocalServiceFailed(f"torch can't be used on this CPU: {' '.join(last)}")
    return python


def _refuse_cuda() -> None:
    """A CUDA build is gigabytes of what no test here can use: seen before it is fetched."""
    (torch,) = [line for line in LOCK.read_text().splitlines() if line.startswith("torch==")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--only-binary", ":all:", "--report", "-", torch]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise LocalServiceFailed(f"{torch} can't be found: {done.stderr[-500:]}")
    (found,) = json.loads(done.stdout)["install"]
    if any(
        "cuda" in need or "nvidia" in need for need in found["metadata"].get("requires_dist", [])
    ):
        raise LocalServiceFailed(
            f"pip would install a CUDA build of {torch}: point it to CPU wheels "
            "(PIP_FIND_LINKS or PIP_INDEX_URL)"
        )
