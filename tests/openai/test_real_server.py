"""Branches and a whole job on llama-cpp-python's server with SmolLM2-135M-Instruct."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marco_search.cli.output import DOES_NOT_FIT
from marco_search.errors import ModelRefused
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.runtime.servers.openai_answers import text_id
from marco_search.search.branches import (
    Branch,
    BranchRequest,
    Expansion,
    Finish,
    Message,
    ReflectionPlacement,
    TurnFormat,
)
from marco_search.settings import Settings
from producer import Producer
from tests.openai import llama_cpp

MARCO = Path(sys.prefix) / "bin" / "marco"
SENTENCE = TurnFormat(
    opening="", thought="", end_of_thought="", output="", end_of_output="", stops=(".",)
)


def opened(url: str, key: str = llama_cpp.KEY) -> Runtime:
    given = {"MARCO_RUNTIME": url, "MARCO_RUNTIME_API_KEY": key, "MARCO_RUNTIME_TIMEOUT_S": "300"}
    return open_runtime(Settings.model_validate(given))


@pytest.fixture(scope="module")
def runtime(server: str) -> Iterator[Runtime]:
    found = opened(server)
    yield found
    found.close()


@pytest.fixture(scope="module")
def prompt(runtime: Runtime) -> str:
    return runtime.render([Message(role="user", content="Tell me about Paris.")])


def fork(prefix: str, *seeds: int, **more: Any) -> Expansion:
    given: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.0} | more
    requests = [BranchRequest(branch_id=i, seed=seed, **given) for i, seed in enumerate(seeds)]
    return Expansion(node_id=0, prefix=prefix, branches=tuple(requests), turn=SENTENCE)


def text(branch: Branch) -> str:
    assert branch.error is None
    return "".join(s.text for s in branch.segments)


def test_it_says_what_it_is_and_what_it_can_not_do(runtime: Runtime) -> None:
    info = runtime.info
    wanted = f"llama-cpp-python {llama_cpp.VERSION}, prefixes as text, token ids from texts"
    assert (info.name, info.version, info.model) == ("openai", wanted, llama_cpp.MODEL)
    assert len(info.lacks) == 6


def test_a_seed_gives_the_same_branch_again_and_another_seed_another(
    runtime: Runtime, prompt: str
) -> None:
    first, other, again = runtime.branch([fork(prompt, 7, 8, 7)])
    assert text(first) == text(again) != text(other)
    assert first.prompt_tokens > 5


def test_tokens_make_up_the_text_and_have_five_candidates(runtime: Runtime, prompt: str) -> None:
    (branch,) = runtime.branch([fork(prompt, 1, temperature=0.0)])
    assert text(branch).endswith(".")
    assert branch.finish is Finish.STOP
    for token in branch.segments[0].tokens:
        assert token.id == text_id(token.text) == token.top[0][0]  # it is greedy
        values = [p for _, p in token.top]
        assert values == sorted(values, reverse=True)
        assert 0 < sum(map(math.exp, values)) <= 1.001
        assert all(isinstance(branch.texts[i], str) for i, _ in token.top)


def test_a_branch_goes_on_from_a_candidate_that_was_not_taken(
    runtime: Runtime, prompt: str
) -> None:
    (greedy,) = runtime.branch([fork(prompt, 1, temperature=0.0, max_new_tokens=4)])
    last = greedy.segments[0].tokens[-1]
    taken, passed_over = (i for i, _ in last.top[:2])
    before = "".join(t.text for t in greedy.segments[0].tokens[:-1])
    both = [
        runtime.branch([fork(prompt + before + greedy.texts[i], 1, temperature=0.0)])[0]
        for i in (taken, passed_over)
    ]
    assert text(both[0]) != text(both[1])


def test_a_reflection_is_put_before_the_branch(runtime: Runtime, prompt: str) -> None:
    (branch,) = runtime.branch([fork(prompt, 3, reflect=ReflectionPlacement.FIRST)])
    assert text(branch).startswith(SENTENCE.reflection)
    assert branch.generated_tokens > 0


def test_characters_of_several_tokens_are_whole(runtime: Runtime) -> None:
    greedy = fork("🍎🍏🍎🍏🍎🍏", 1, temperature=0.0)
    (branch,) = runtime.branch([replace(greedy, turn=replace(SENTENCE, stops=("\n\n",)))])
    assert set(text(branch)) <= set("🍎🍏")


def test_a_prompt_that_does_not_fit_is_reported(runtime: Runtime) -> None:
    (branch,) = runtime.branch([fork("one two three " * 1000, 1)])
    assert str(branch.error).startswith("PromptTooLong: ")


def test_near_the_end_of_the_context_a_branch_gets_what_is_left(runtime: Runtime) -> None:
    (branch,) = runtime.branch([fork("one " * 1000, 1, max_new_tokens=100, temperature=0.0)])
    assert (branch.finish, branch.error) == (Finish.LENGTH, None)
    assert 10 < branch.generated_tokens < 30


def test_aborted_branches_fail_at_once(runtime: Runtime, prompt: str) -> None:
    found: list[Branch] = []
    asked = fork(prompt, 1, 2, 3, 4, max_new_tokens=400)
    asked = replace(asked, turn=replace(SENTENCE, stops=("never",)))
    thread = threading.Thread(target=lambda: found.extend(runtime.branch([asked])))
    thread.start()
    while not found:
        runtime.abort()
        time.sleep(0.1)
    thread.join(60)
    assert "BranchFailed: aborted" in {b.error for b in found}


def test_a_wrong_key_says_which_setting_to_mend(server: str) -> None:
    with pytest.raises(Exception, match="MARCO_RUNTIME_API_KEY") as caught:
        opened(server, "open-sesame")
    assert "open-sesame" not in str(caught.value)


def test_a_server_started_without_log_probs_is_refused_with_advice(server: str) -> None:
    with (
        llama_cpp.serving(Path(".marco/openai-test-2.log"), logprobs=False, context=128) as url,
        pytest.raises(ModelRefused, match="start it with --logits_all true"),
    ):
        opened(url)


def test_a_job_from_submission_to_verified_trail(
    server: str, database_url: str, redis_url: str
) -> None:
    env = os.environ | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "MARCO_RUNTIME": server,
        "MARCO_RUNTIME_API_KEY": llama_cpp.KEY,
        "MARCO_RUNTIME_TIMEOUT_S": "600",
    }

    def marco(*words: str, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run([MARCO, *words], env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode in codes, done.stdout + done.stderr
        assert llama_cpp.KEY not in done.stdout + done.stderr
        return done.stdout

    worker = subprocess.Popen([MARCO, "worker"], env=env)
    try:
        with Producer(database_url, redis_url) as producer:
            options = SearchOptions(strategy="vote", rollouts=4, max_new_tokens=24, seed=1)
            job = producer.submit(ReasoningJob(question="What is 2 plus 3?", options=options))
            (result,) = producer.wait([job], timeout_s=900)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    assert (result.state, result.model) == ("succeeded", llama_cpp.MODEL)
    assert 0 < result.generated_tokens <= 4 * 24
    marco("verify", str(job.id))
    # What its cache holds from before changes last digits, and with them a text now and then.
    said = marco("replay", str(job.id), codes=(0, DOES_NOT_FIT))
    assert "This server does not support: the same bits again" in said
    assert "does not report its revision" in said
