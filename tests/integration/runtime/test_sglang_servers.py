"""Several servers, their health, and how much each is given to do."""

from __future__ import annotations

import socket
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from marco_search.deadlines import Call
from marco_search.engine import Journal, make_plan, run_search
from marco_search.errors import ModelRefused
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.runtime.servers.calls import Limiter
from marco_search.runtime.servers.server import DEFAULT_CONTEXT_TOKENS
from marco_search.runtime.servers.sglang import SGLangServer
from marco_search.search.branches import Finish
from tests.integration.runtime.openai_server import as_server
from tests.integration.runtime.sglang_server import (
    Server,
    expansion,
    runtime,
    serving,
    stop,
    until,
)

ASSISTANT = "<|im_start|>assistant\n"


def test_a_search_keeps_to_one_server_and_searches_spread_over_all() -> None:
    with serving() as one, serving() as two, runtime(one, two) as opened:
        for i in range(24):
            prompt = f"question {i}{ASSISTANT}"
            further = expansion(2, prefix=prompt + "so", first=2)
            opened.branch([expansion(2, prefix=prompt), replace(further, parts=(prompt, "so"))])
        by_prompt = [
            {a["text"].split("<")[0] for a in server.asked if a["text"]} for server in (one, two)
        ]
    assert not by_prompt[0] & by_prompt[1]
    assert len(by_prompt[0]) + len(by_prompt[1]) == 24
    assert min(map(len, by_prompt)) >= 3


def test_all_processes_choose_the_same_server() -> None:
    with serving() as one, serving() as two:
        for urls in ((one, two), (two, one)):
            with runtime(*urls) as opened:
                opened.branch([expansion(2, prefix=f"q{ASSISTANT}")])
        asked = Counter({"one": len(one.calls), "two": len(two.calls)})
    assert sorted(asked.values()) == [0, 4]


def test_a_search_outlives_its_server_and_the_server_comes_back() -> None:
    options = SearchOptions(strategy="step", rollouts=24, early_stop=False)
    job = ReasoningJob(question="How many?", options=options)
    with serving() as one, serving() as two, runtime(one, two) as opened:
        servers = {one.url: one, two.url: two}

        def after_round(search: object) -> None:
            if len(servers) == 2:
                gone = one if one.calls else two
                stop(servers.pop(gone.url))

        done = run_search(job, make_plan(job, opened), opened, Journal(), on_round=after_round)
        rollouts = done.search.tree.rollouts
        assert len(rollouts) == 24
        assert all(r.finish is not Finish.FAILED for r in rollouts)
        (left,) = servers.values()
        gone = two if left is one else one
        with serving(gone.server_port) as again:

            def is_used() -> bool:
                for i in range(8):
                    opened.branch([expansion(1, prefix=f"new {i} {time.monotonic()}{ASSISTANT}")])
                return bool(again.calls)

            until(is_used)


def test_a_server_that_is_down_at_the_start_is_left_out() -> None:
    with serving() as one, runtime("http://127.0.0.1:9", one) as opened:
        for i in range(8):
            (branch,) = opened.branch([expansion(1, prefix=f"q{i}{ASSISTANT}")])
            assert branch.finish is Finish.STOP


def test_a_server_that_never_said_what_it_serves_costs_no_more_than_a_branch_may_take() -> None:
    with serving() as gone:
        stop(gone)
        with serving() as one, runtime(gone.url, one, MARCO_RUNTIME_TIMEOUT_S="1") as opened:
            stop(one)
            with socket.create_server(("127.0.0.1", gone.server_port), backlog=100):  # silent
                began = time.monotonic()
                prompts = [f"q{i}{ASSISTANT}" for i in range(12)]  # of either server
                found = opened.branch([expansion(2, prefix=prompt) for prompt in prompts])
                assert time.monotonic() - began < SGLangServer.ask_s
    assert any("deadline" in str(branch.error) for branch in found)


def test_servers_with_different_models_are_refused() -> None:
    with (
        serving() as one,
        serving(model="other") as two,
        pytest.raises(ModelRefused, match="all must serve the same model"),
        runtime(one, two),
    ):
        pass


def test_a_server_that_comes_back_with_another_model_is_not_used() -> None:
    with serving() as first, runtime(first) as opened:
        opened.branch([expansion(1)])
        stop(first)
        (branch,) = opened.branch([expansion(1)])
        assert "can't be reached" in str(branch.error)
        with serving(first.server_port, model="other") as other:
            (branch,) = opened.branch([expansion(1)])
            assert branch.finish is Finish.FAILED
            assert str(branch.error).startswith("ModelRefused: ")
            assert str(branch.error).endswith("serves other (v1) now, it was toy-marco-o1 (v1)")
            assert not other.asked
        with serving(first.server_port):
            (branch,) = opened.branch([expansion(1)])
            assert branch.finish is Finish.STOP


def test_a_server_restarted_with_another_model_between_two_calls_is_not_used() -> None:
    """The connection that was kept is what tells: no call fails in between."""
    with serving() as first, runtime(first) as opened:
        opened.branch([expansion(1)])
        stop(first)
        with serving(first.server_port, model="other") as other:
            (branch,) = opened.branch([expansion(1)])
            assert str(branch.error).startswith("ModelRefused: ")
            assert not other.asked


@pytest.mark.parametrize("make", [Server, as_server("vllm")])
def test_a_server_that_accepts_and_never_answers_is_left_out_until_it_generates(make: Any) -> None:
    with (
        serving(make=make) as one,
        serving(make=make) as two,
        runtime(one, two, MARCO_RUNTIME_TIMEOUT_S="0.3") as it,
    ):

        def answered_by_two(questions: str = "same") -> bool:
            """All of some questions, which spread over both servers when both are well."""
            asked = len(one.asked)
            prompts = [f"{questions} {i}{ASSISTANT}" for i in range(12)]
            found = [b for p in prompts for b in it.branch([expansion(1, prefix=p)])]
            return all(b.finish is Finish.STOP for b in found) and len(one.asked) == asked

        one.hung.set()  # what it serves, it still says
        until(answered_by_two, 60)
        one.hung.clear()
        one.released.set()
        until(lambda: not answered_by_two(str(time.monotonic())), 60)


def test_a_changed_server_is_not_used_while_another_call_checks_it() -> None:
    """Many branches at once find that the server closed its connections."""
    with serving() as first, runtime(first) as opened:
        opened.branch([expansion(8)])
        stop(first)
        with serving(first.server_port, model="other") as other:
            branches = opened.branch([expansion(8), expansion(8, first=8)])
            assert {b.finish for b in branches} == {Finish.FAILED}
            assert not other.asked


def test_a_server_that_says_odd_things_of_itself_is_taken_as_unknown() -> None:
    with serving() as server:
        server.about = {"/get_server_info": {"version": "1\n\x1b[31m", "context_length": "long"}}
        with runtime(server) as opened:
            assert opened.info.version == r"1\n\u001b[31m"
            assert opened.info.context_tokens == DEFAULT_CONTEXT_TOKENS


def call() -> Call:
    return Call(time.monotonic() + 5)


def test_the_allowance_halves_when_the_server_is_busy_and_grows_by_one_a_window() -> None:
    limiter = Limiter(8, slow_s=60)
    began = time.monotonic()
    for _ in range(8):
        assert limiter.acquire(call())
    limiter.release(began, ok=False, overloaded=True)
    limiter.release(began, ok=False, overloaded=True)  # was on its way already: not counted again
    assert limiter.limit == 4
    for _ in range(6):
        limiter.release(began, ok=True, overloaded=False)
    for _ in range(6):
        for _ in range(limiter.limit):
            assert limiter.acquire(call())
        for _ in range(limiter.in_flight):
            limiter.release(time.monotonic(), ok=True, overloaded=False)
    assert 4 < limiter.limit <= 8


def test_an_answer_that_took_too_long_counts_as_busy() -> None:
    limiter = Limiter(8, slow_s=1)
    assert limiter.acquire(call())
    limiter.release(time.monotonic() - 2, ok=True, overloaded=False)
    assert limiter.limit == 4


def test_waiting_for_a_place_ends_with_the_call() -> None:
    limiter = Limiter(1, slow_s=60)
    assert limiter.acquire(call())
    late = Call(time.monotonic() + 0.05)
    assert not limiter.acquire(late)
    cut = call()
    cut.cancel()
    assert not limiter.acquire(cut)
    assert limiter.in_flight == 1


def test_no_more_branches_than_allowed_are_in_flight() -> None:
    with serving() as server:
        peak = [0, 0]

        def count(handler: object, body: dict[str, object]) -> bool:
            peak[0] += 1
            peak[1] = max(peak)
            time.sleep(0.01)
            peak[0] -= 1
            return False

        server.act = count
        with runtime(server, MARCO_RUNTIME_MAX_IN_FLIGHT="3") as opened:
            branches = opened.branch([expansion(12)])
        assert [b.finish for b in branches] == [Finish.STOP] * 12
        assert peak[1] <= 3
