"""How fast the embedded engine decodes, and next to it transformers on the same weights.

    python -m ops.bench.embedded         (or `make bench` with the name)

Each row goes on from a prompt of its own length for 64 tokens, with the five best log-probs of
every position. All in one process, one thread each, taking turns, so that the ratio means
something on a busy machine too. transformers is measured where it is installed.
"""

from __future__ import annotations

import importlib.util
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BRANCHES = (1, 8, 32)
NEW_TOKENS = 64
ROUNDS = 3

Run = Callable[[list[list[int]]], None]


def measure() -> dict[str, float]:
    """Tokens per second of both, and their ratio, by number of branches; medians."""
    from marco_search.pocket import MODEL_DIR

    before = time.perf_counter()
    run, close, fork = _embedded(MODEL_DIR)
    result = {"load_s": time.perf_counter() - before}
    runs: dict[str, Run] = {"embedded": run}
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        runs["transformers"] = _transformers(MODEL_DIR)
    for branches in BRANCHES:
        prompts = _prompts(MODEL_DIR, branches)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(ROUNDS + 1):
            for name, generate in runs.items():
                began = time.perf_counter()
                generate(prompts)
                if turn:  # the first is a warm-up
                    seconds[name].append(time.perf_counter() - began)
        for name, found in seconds.items():
            result[f"{name}_tok_s_{branches}"] = branches * NEW_TOKENS / statistics.median(found)
        if "transformers" in runs:
            theirs = result[f"transformers_tok_s_{branches}"]
            result[f"ratio_{branches}"] = result[f"embedded_tok_s_{branches}"] / theirs
    result["fork_8_ms"] = 1000 * fork()
    result["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    close()
    return result


def _prompts(folder: Path, branches: int) -> list[list[int]]:
    """Held-out questions with the beginning of a thought: 60 to 200 tokens."""
    from marco_search.pocket import held_out
    from marco_search.runtime.embedded.tokenizer import Tokenizer

    tokenizer = Tokenizer(folder / "tokenizer.json")
    rows = (held_out("heldout_en") + held_out("heldout_zh"))[:branches]
    texts = [
        f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n<Thought>\n"
        + "Step 1: 12+30=42.\n" * (i % 5)
        for i, row in enumerate(rows)
    ]
    return [tokenizer.encode(text).tolist() for text in texts]


def _embedded(folder: Path) -> tuple[Run, Callable[[], None], Callable[[], float]]:
    import numpy as np

    from marco_search.runtime.embedded.backend import EmbeddedBackend, load_model
    from marco_search.runtime.embedded.batch import GenerationRequest

    model = load_model(folder)
    backend = EmbeddedBackend(model, max_rows=64, cache_bytes=256 << 20, timeout_s=600)

    def ask(prompts: list[list[int]], tokens: int) -> None:
        futures = [
            backend.engine.submit(
                GenerationRequest(ids=np.array(ids, np.int32), max_new_tokens=tokens, seed=i)
            )
            for i, ids in enumerate(prompts)
        ]
        for future in futures:
            future.result(600)

    def generate(prompts: list[list[int]]) -> None:
        backend.engine.flush_cache()
        ask(prompts, NEW_TOKENS)

    def fork() -> float:
        """Seconds from a cached prefix to the first token of all of 8 children."""
        prefix = _prompts(folder, 5)[-1]
        ask([prefix], 0)
        found = []
        for _ in range(20):
            began = time.perf_counter()
            ask([prefix] * 8, 1)
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    return generate, backend.shutdown, fork


def _transformers(folder: Path) -> Run:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pad = model.config.pad_token_id or 0

    def generate(prompts: list[list[int]]) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=pad,
                output_logits=True,
                return_dict_in_generate=True,
            )
            for logits in out.logits:
                logits.log_softmax(-1).topk(5)

    return generate


if __name__ == "__main__":
    from ops.bench.run import run_one

    run_one("embedded")
