"""The real SGLang server on a CPU, with the pocket model: for tests only.

Its environment, 1.6 GB, lies in the user's cache folder. shim/ has what is missing on a CPU, put on
the server's PYTHONPATH. `compare` asks it and the embedded engine the same, through the same fork
program.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests

from marco_search import pocket
from marco_search.errors import LocalServiceFailed
from marco_search.kinds import ReasoningJob, kind_of
from marco_search.runtime.base import Runtime
from marco_search.search.branches import MARCO_O1, Branch, BranchRequest, Expansion
from marco_search.search.rewards import confidences
from ops import environment
from tests.servers import serving as serving_at

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
_AT_ONCE = 10


def serving(model: Path, log: Path) -> AbstractContextManager[str]:
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
    return serving_at("SGLang", command, _ENVIRONMENT, log, ready, _START_S)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How two runtimes agree on greedy completions. Differences are the largest seen."""

    prompts: int
    same_tokens: int  #: prompts whose completions are the same, token by token
    tokens: int  #: positions compared
    logprob_delta: float  #: of chosen tokens and all candidates
    confidence_delta: float
    errors: tuple[str, ...]


def prompts(runtime: Runtime, count: int) -> list[str]:
    """Rendered prompts of held-out problems, half of them English, half Chinese."""
    found = []
    for name in ("heldout_en", "heldout_zh"):
        for row in pocket.held_out(name)[: count // 2]:
            job = ReasoningJob(question=row["question"])
            kind = kind_of(job)
            found.append(runtime.render(kind.messages(job)) + MARCO_O1.opening)
    return found


def compare(one: Runtime, other: Runtime, texts: Sequence[str], max_new_tokens: int) -> Parity:
    """Continue each text greedily on both."""
    same = positions = 0
    logprob_delta = confidence_delta = 0.0
    errors: list[str] = []
    both = [_greedy(runtime, texts, max_new_tokens) for runtime in (one, other)]
    for branches in zip(*both, strict=True):
        errors += [str(branch.error) for branch in branches if branch.error]
        left, right = ([t for s in branch.segments for t in s.tokens] for branch in branches)
        same += [t.id for t in left] == [t.id for t in right]
        for x, y in zip(left, right, strict=False):
            if x.id != y.id:
                break  # from here on they write different texts
            positions += 1
            ours, theirs = dict(x.top), dict(y.top)
            shared = [abs(ours[i] - theirs[i]) for i in ours.keys() & theirs.keys()]
            # Candidates of nearly the same probability may change places at the end of the list.
            last = abs(min(ours.values()) - min(theirs.values()))
            logprob_delta = max(logprob_delta, abs(x.logprob - y.logprob), last, *shared)
            (c,), (d,) = confidences((x,)), confidences((y,))
            confidence_delta = max(confidence_delta, abs(c - d))
    return Parity(
        prompts=len(texts),
        same_tokens=same,
        tokens=positions,
        logprob_delta=logprob_delta if positions else math.inf,
        confidence_delta=confidence_delta,
        errors=tuple(errors),
    )


def _greedy(runtime: Runtime, texts: Sequence[str], max_new_tokens: int) -> list[Branch]:
    request = BranchRequest(branch_id=0, seed=0, max_new_tokens=max_new_tokens, temperature=0.0)
    expansions = [
        Expansion(node_id=0, prefix=text, branches=(replace(request, branch_id=i),))
        for i, text in enumerate(texts)
    ]
    parts = (expansions[i : i + _AT_ONCE] for i in range(0, len(expansions), _AT_ONCE))
    return [branch for part in parts for branch in runtime.branch(part)]
