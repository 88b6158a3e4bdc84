"""The same figures that only the true SGLang server can give: parity and its prefix cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marco_search import engine
from marco_search.errors import LocalServiceFailed
from marco_search.pocket import MODEL_DIR
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.search.branches import Finish
from marco_search.settings import Settings
from ops.bench.engine.searches import job
from ops.sglang_cpu import parity
from ops.sglang_cpu.server import VERSION, serving

PROMPTS = 50
_TOKENS = 64


def measure() -> dict[str, Any]:
    """Figures of the real server, or why there are none."""
    try:
        with serving(MODEL_DIR, Path(".marco/bench/sglang.log")) as url:
            return compare(url)
    except LocalServiceFailed as error:
        nothing = dict.fromkeys(("cached_prompt_share", "parity_max_logprob_delta"))
        return nothing | {"real_skipped": str(error)}


def open_both(url: str) -> tuple[Runtime, Runtime]:
    """(the embedded engine, the server) on the pocket model, with its own chat template."""
    common = {"MARCO_MODEL": MODEL_DIR, "MARCO_RUNTIME_TIMEOUT_S": 600}
    return (
        open_runtime(Settings.model_validate(common | {"MARCO_RUNTIME": "embedded"})),
        open_runtime(Settings.model_validate(common | {"MARCO_RUNTIME": url})),
    )


def compare(url: str) -> dict[str, Any]:
    """Parity and cached share against the server at `url`."""
    embedded, server = open_both(url)
    try:
        texts = parity.prompts(embedded, PROMPTS)
        found = parity.compare(embedded, server, texts, _TOKENS)
        cached, failed = cached_share(server)
    finally:
        embedded.close()
        server.close()
    return {
        "real_version": VERSION,
        "parity_prompts": found.prompts,
        "parity_same_tokens": found.same_tokens,
        "parity_positions": found.tokens,
        "parity_max_logprob_delta": found.logprob_delta,
        "parity_max_confidence_delta": found.confidence_delta,
        "cached_prompt_share": cached,
        "real_failed_branches": failed + len(found.errors),
    }


def cached_share(runtime: Runtime) -> tuple[float, int]:
    """(share of prompt tokens from the cache, failed branches) of a search of 32 rollouts."""
    work = job(0, "step", 32)
    fixed = engine.make_plan(work, runtime)
    rollouts = engine.run_search(work, fixed, runtime, engine.NullJournal()).search.tree.rollouts
    share = sum(r.cached_tokens for r in rollouts) / sum(r.prompt_tokens for r in rollouts)
    return share, sum(r.finish is Finish.FAILED for r in rollouts)
