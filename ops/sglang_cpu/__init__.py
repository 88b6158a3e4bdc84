"""The real SGLang server on a CPU, with the pocket model: for tests and benches, never in use.

Its environment, 1.6 GB, lies in the user's cache folder. shim/ has what is missing on a CPU, put on
the server's PYTHONPATH; parity compares the server with the embedded engine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from marco_search.errors import LocalServiceFailed
from ops import environment

VERSION = "0.5.23"  # as requirements.lock has it
LOCK = Path(__file__).with_name("requirements.lock")
_SHIM = Path(__file__).with_name("shim")
_START_S = 900.0  # half a minute on a free core; much more on a busy one
# Without OMP_NUM_THREADS two busy cores give a twentieth of the speed; without
# max-total-tokens a pool of 15 GB is allocated; without sleep-on-idle a core burns.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(_SHIM),
}
_OPTIONS = (
    "--device cpu --attention-backend torch_native --sampling-backend pytorch "
    "--disable-overlap-schedule --dtype float32 --mem-fraction-static 0.2 "
    "--max-total-tokens 40000 --sleep-on-idle --enable-deterministic-inference"
)


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """URL of a server of the model in this folder. What it prints goes to `log`.

    Raises LocalServiceFailed if its environment can't be built or it does not start.
    """
    python = ensure_environment()
    command = [str(python), "-m", "sglang.launch_server", "--model-path", str(model)]

    def ready(url: str) -> bool:
        """Whether it generates: its ports are open long before that."""
        body: Any = {"text": "a", "sampling_params": {"max_new_tokens": 1}}
        return requests.post(f"{url}/generate", json=body, timeout=60).status_code == 200

    command += _OPTIONS.split()
    with environment.serving("SGLang", command, _ENVIRONMENT, log, ready, _START_S) as url:
        yield url


def ensure_environment() -> Path:
    """The environment's Python, after installing what its lock says if need be.

    Raises LocalServiceFailed, with the reason, where it can't be built.
    """
    if not environment.folder("sglang-cpu", LOCK).exists():
        # A CUDA build is gigabytes of what no test here can use: seen before it is fetched.
        (torch,) = [line for line in LOCK.read_text().splitlines() if line.startswith("torch==")]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
        command += ["--ignore-installed", "--only-binary", ":all:", "--report", "-", torch]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise LocalServiceFailed(f"{torch} can't be found: {done.stderr[-500:]}")
        (found,) = json.loads(done.stdout)["install"]
        needs = " ".join(found["metadata"].get("requires_dist", []))
        if "cuda" in needs or "nvidia" in needs:
            raise LocalServiceFailed(
                f"pip would install a CUDA build of {torch}: point it to CPU wheels "
                "(PIP_FIND_LINKS or PIP_INDEX_URL)"
            )
    return environment.ensure("sglang-cpu", LOCK, free_gb=4)
