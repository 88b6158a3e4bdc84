"""The real server and the embedded engine do the same; the whole chain runs on the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests

from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.pocket import MODEL_DIR
from marco_search.runtime.base import Runtime
from marco_search.search.branches import (
    Branch,
    BranchRequest,
    Expansion,
    Finish,
    ReflectionPlacement,
)
from ops.bench.runtime import cached_share, failed, search
from producer import Producer
from tests.integration.toys import wait_until
from tests.sglang.sglang_cpu import VERSION, compare, prompts

ROOT = Path(__file__).parents[2]
PROMPTS = 50  # that the embedded engine and the server both continue
Both = tuple[Runtime, Runtime]


def fork(prefix: str, count: int, **more: Any) -> Expansion:
    given: dict[str, Any] = {"max_new_tokens": 60, "temperature": 1.0} | more
    requests_ = [BranchRequest(branch_id=i, seed=7 + i, **given) for i in range(count)]
    return Expansion(node_id=0, prefix=prefix, branches=tuple(requests_))


def running(server: str) -> int:
    """Requests that the server works on or keeps waiting."""
    (load,) = requests.get(f"{server}/v1/loads?include=core", timeout=60).json()["loads"]
    return int(load["num_running_reqs"]) + int(load["num_waiting_reqs"])


def texts(branches: list[Branch]) -> list[str]:
    return ["".join(s.text for s in b.segments) for b in branches]


def test_it_is_the_version_that_this_was_written_for(both: Both) -> None:
    assert both[1].info.version == VERSION
    assert both[1].info.context_tokens >= 1000


def test_greedy_tokens_log_probs_and_confidences_are_those_of_the_embedded_engine(
    both: Both,
) -> None:
    embedded, real = both
    found = compare(embedded, real, prompts(embedded, PROMPTS), 64)
    print(f"parity_max_logprob_delta {found.logprob_delta:.6f}")  # docs/performance.md
    assert found.errors == ()
    assert found.same_tokens == found.prompts == PROMPTS
    assert found.logprob_delta < 1e-3
    assert found.confidence_delta < 1e-3


def test_a_fork_goes_on_from_the_tokens_that_are_kept(both: Both) -> None:
    """Also where the text would be tokenised otherwise: here a token for each character."""
    prompt, text = prompts(both[0], 2)[0], "We begin with what is known. "
    one = both[0].backend.model.tokenizer.encode  # type: ignore[attr-defined]
    ids = tuple(int(i) for character in text for i in one(character))
    assert len(ids) > len(one(text))
    (start,) = both[1].branch([fork(prompt, 1)])
    parts = replace(fork(prompt + text, 2), parts=(prompt, ids))
    for branch in both[1].branch([parts]):
        assert branch.error is None
        assert branch.prompt_tokens == start.prompt_tokens + len(ids)
    for branch in both[1].branch([fork(prompt + text, 2)]):
        assert branch.prompt_tokens == start.prompt_tokens + len(one(text))


def test_children_of_a_fork_find_their_prefix_in_the_cache(both: Both) -> None:
    prefix = prompts(both[0], 2)[0] + "We begin with what is known. "
    branches = both[1].branch([fork(prefix, 6)])
    for branch in branches:
        assert branch.finish is not Finish.FAILED, branch.error
        assert branch.cached_tokens >= branch.prompt_tokens - 1


def test_nearly_all_prompt_tokens_of_a_search_come_from_the_cache(both: Both) -> None:
    rollouts = search(both[1], "step", 32).rollouts
    print(f"cached_prompt_share {cached_share(rollouts):.3f}")
    assert failed(rollouts) == 0
    assert cached_share(rollouts) >= 0.95


def test_a_seed_gives_the_same_branch_again_and_another_seed_another(both: Both) -> None:
    prefix = prompts(both[0], 4)[1]
    once, again = texts(both[1].branch([fork(prefix, 4)])), texts(both[1].branch([fork(prefix, 4)]))
    assert once == again
    assert len(set(once)) > 1


def test_reflection_runs_on_the_real_server(both: Both) -> None:
    prefix = prompts(both[0], 4)[0]
    branches = both[1].branch(
        [fork(prefix, 2, reflect=ReflectionPlacement.AT_END, max_new_tokens=300)]
    )
    assert all(b.finish is not Finish.FAILED for b in branches), branches[0].error


def test_a_prompt_that_does_not_fit_is_reported(both: Both) -> None:
    branches = both[1].branch([fork("one two three " * 2000, 2)])
    assert all(str(b.error).startswith("PromptTooLong: ") for b in branches)


def test_aborted_branches_end_on_the_server_as_well(both: Both, server: str) -> None:
    prefix = prompts(both[0], 6)[2]
    found: list[Branch] = []
    expansion = fork(prefix, 4, max_new_tokens=900)
    thread = threading.Thread(target=lambda: found.extend(both[1].branch([expansion] * 16)))
    thread.start()
    wait_until(lambda: running(server) > 8, "the branches run on the server")
    both[1].abort()
    thread.join(120)
    assert not thread.is_alive()
    assert any(b.error == "BranchFailed: aborted" for b in found)
    wait_until(lambda: running(server) == 0, "nothing is left on the server")


def test_the_whole_chain_from_producer_to_postgres(
    server: str, database_url: str, redis_url: str
) -> None:
    env = os.environ | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "MARCO_RUNTIME": server,
        "MARCO_MODEL": str(MODEL_DIR),
        "MARCO_RUNTIME_TIMEOUT_S": "600",
    }
    code = "import sys; from marco_search import settings; from worker import main; "
    code += "sys.exit(main.run(settings.load(), processes=2))"
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env)
    try:
        with Producer(database_url, redis_url) as producer:
            question = "Tom has 3 apples. Tom buys 5 more apples. How many apples does Tom have?"
            options: dict[str, Any] = {
                "strategy": "step",
                "rollouts": 8,
                "early_stop": False,
                "max_new_tokens": 300,
            }
            jobs = producer.submit_many(
                [
                    ReasoningJob(question=question, options=SearchOptions(**options | {"seed": i}))
                    for i in range(3)
                ]
            )
            results = producer.wait(jobs, timeout_s=900)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    assert [r.state for r in results] == ["succeeded"] * 3
    assert all(r.rollouts == 8 and r.generated_tokens > 0 for r in results)
    assert all(r.cached_tokens > 0.9 * r.prompt_tokens for r in results)
    assert {r.model for r in results} == {str(MODEL_DIR)}
