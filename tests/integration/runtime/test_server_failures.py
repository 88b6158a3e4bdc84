"""Each way in which a server can fail: never a hang, never a lost sibling, a clear error."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from marco_search.engine import Journal, make_plan, run_search
from marco_search.errors import RuntimeUnavailable
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.runtime.servers import connections
from marco_search.search.branches import Branch, Finish
from marco_search.search.budgets import StopReason
from tests.integration.runtime.openai_server import as_server
from tests.integration.runtime.sglang_server import (
    Handler,
    Server,
    completion,
    expansion,
    runtime,
    serving,
    until,
)
from tests.silent_proxy import silent_proxy

BAD = 101
"""Seed of the branch that goes wrong; its siblings have 100 and 102."""


@pytest.fixture
def sglang() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(params=["sglang", "vllm"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """What has nothing to do with the protocol is tried with two."""
    make = Server if request.param == "sglang" else as_server(request.param)
    with serving(make=make) as running:
        yield running


def seed_of(body: dict[str, Any]) -> int | None:
    seed: int | None = body["sampling_params"].get("sampling_seed")
    return seed


def only_bad(act: Callable[[Handler, dict[str, Any]], object]) -> Any:
    """Go wrong for the bad branch alone."""

    def chosen(handler: Handler, body: dict[str, Any]) -> bool:
        if seed_of(body) != BAD:
            return False
        act(handler, body)
        return True

    return chosen


def first_times(count: int, act: Callable[[Handler, dict[str, Any]], object]) -> Any:
    """Go wrong for the bad branch's first `count` tries."""
    tries: list[int] = []

    def chosen(handler: Handler, body: dict[str, Any]) -> bool:
        if seed_of(body) != BAD or len(tries) >= count:
            return False
        tries.append(1)
        act(handler, body)
        return True

    return chosen


def three(server: Server, **settings: Any) -> list[Branch]:
    with runtime(server, **settings) as opened:
        return opened.branch([expansion(3)])


def failed_alone(branches: list[Branch]) -> str:
    """The error of the bad branch, whose siblings stand."""
    assert [b.finish for b in branches] == [Finish.STOP, Finish.FAILED, Finish.STOP]
    return str(branches[1].error)


def with_meta(change: Callable[[dict[str, Any]], Any]) -> Any:
    """A completion whose meta_info is changed."""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        answer = completion(body)
        change(answer["meta_info"])
        handler.send(answer)

    return only_bad(act)


def test_an_error_of_the_server_is_retried_and_then_a_value(sglang: Server) -> None:
    sglang.act = only_bad(lambda h, b: h.send({"error": {"message": "out of memory"}}, 500))
    error = failed_alone(three(sglang))
    assert error.startswith("RuntimeUnavailable: ")
    assert error.endswith("answered 500: out of memory")
    tries = [c["rid"] for c in sglang.calls if seed_of(c) == BAD]
    assert len(tries) == len(set(tries)) == 4


@pytest.mark.parametrize(
    "act",
    [
        lambda h, b: h.send({}, 500),
        lambda h, b: h.send({}, 503),
        lambda h, b: h.raw(200, b'{"text": "4'),
        lambda h, b: (h.raw(200, b'{"text": "4', length=500), h.drop()),
        lambda h, b: (h.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le"), h.drop()),
        lambda h, b: h.drop(),
        lambda h, b: h.raw(200, b"[]"),
    ],
    ids=[
        "500",
        "503",
        "truncated JSON",
        "truncated body",
        "truncated headers",
        "closed",
        "not an object",
    ],
)
def test_a_passing_failure_is_mended_by_a_retry(server: Server, act: Any) -> None:
    server.act = first_times(2, act)
    branches = three(server)
    assert [b.finish for b in branches] == [Finish.STOP] * 3


def test_a_server_that_is_too_busy_is_waited_for_as_long_as_it_asks(server: Server) -> None:
    at: list[float] = []

    def busy(handler: Handler, body: dict[str, Any]) -> None:
        at.append(time.monotonic())
        handler.send({}, 429, Retry_After="0.4")

    server.act = first_times(5, busy)  # more often than a failure would be retried
    branches = three(server)
    assert [b.finish for b in branches] == [Finish.STOP] * 3
    assert all(later - earlier >= 0.4 for earlier, later in pairwise(at))


def test_a_server_that_stays_too_busy_fails_the_branch_at_its_deadline(server: Server) -> None:
    server.act = only_bad(lambda h, b: h.send({}, 429, Retry_After="30"))
    error = failed_alone(three(server, MARCO_RUNTIME_TIMEOUT_S="1"))
    assert "429" in error


def test_no_first_byte_fails_the_branch_at_its_deadline_and_is_aborted(sglang: Server) -> None:
    sglang.act = only_bad(lambda h, b: sglang.released.wait(60))
    error = failed_alone(three(sglang, MARCO_RUNTIME_TIMEOUT_S="0.5"))
    assert "deadline" in error
    (rid,) = [c["rid"] for c in sglang.calls if seed_of(c) == BAD]
    until(lambda: sglang.aborted == [rid])


def test_an_answer_that_stops_in_the_middle_is_asked_for_again(sglang: Server) -> None:
    def stall(handler: Handler, body: dict[str, Any]) -> None:
        handler.raw(200, b'{"text": "4', length=5000)
        sglang.released.wait(60)

    sglang.act = first_times(1, stall)
    branches = three(sglang, MARCO_RUNTIME_STALL_S="0.2")
    assert [b.finish for b in branches] == [Finish.STOP] * 3
    sglang.act = only_bad(stall)
    assert "broke off" in failed_alone(three(sglang, MARCO_RUNTIME_STALL_S="0.05"))


def test_an_answer_that_drips_does_not_outlive_the_deadline(server: Server) -> None:
    def drip(handler: Handler, body: dict[str, Any]) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not server.released.wait(0.02):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return

    server.act = only_bad(drip)
    began = time.monotonic()
    error = failed_alone(three(server, MARCO_RUNTIME_TIMEOUT_S="0.5"))
    assert "deadline" in error
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m: m.pop("output_token_logprobs"), "no log-probabilities"),
        (lambda m: m["output_top_logprobs"].pop(), "lists of candidates"),
        (
            lambda m: m["output_token_logprobs"].__setitem__(0, [float("nan"), 1, "x"]),
            "nan is not a log-probability",
        ),
        (
            lambda m: m["output_token_logprobs"].__setitem__(0, [None, 1, "x"]),
            "None is not a log-probability",
        ),
        (lambda m: m["output_top_logprobs"][0].pop(), "4 candidates at a position"),
        (lambda m: m["output_top_logprobs"].__setitem__(0, None), "no candidates"),
        (
            lambda m: m.update(finish_reason={"type": "abort", "message": "preempted"}),
            "preempted",
        ),
    ],
)
def test_log_probs_that_make_no_sense_fail_the_branch(
    sglang: Server, change: Any, error: str
) -> None:
    sglang.act = with_meta(change)
    assert error in failed_alone(three(sglang))


def test_an_answer_without_a_completion_fails_the_branch(sglang: Server) -> None:
    sglang.act = only_bad(lambda h, b: h.send({"text": None, "meta_info": 3}))
    assert "not a completion" in failed_alone(three(sglang))


def test_a_request_that_is_refused_is_not_repeated(server: Server) -> None:
    server.act = only_bad(lambda h, b: h.send({"error": {"message": "no such thing"}}, 400))
    assert "answered 400: no such thing" in failed_alone(three(server))
    assert len([c for c in server.calls if seed_of(c) == BAD]) == 1


def test_a_wrong_key_says_which_setting_to_mend(server: Server) -> None:
    server.act = lambda h, b: (h.send({"error": "Unauthorized"}, 401), True)[1]
    branches = three(server, MARCO_RUNTIME_API_KEY="sesame")
    assert all("MARCO_RUNTIME_API_KEY" in str(b.error) for b in branches)
    assert "sesame" not in str(branches)


def test_a_prompt_that_is_too_long_is_reported(server: Server) -> None:
    words = "The input (600 tokens) is longer than the model's context length (512 tokens)."
    server.act = lambda h, b: (h.send({"error": {"message": words}}, 400), True)[1]
    for branch in three(server):
        assert branch.finish is Finish.FAILED
        assert str(branch.error).startswith("PromptTooLong: ") and "600 tokens" in str(branch.error)


def test_a_branch_near_the_end_of_the_context_gets_the_room_that_is_left(server: Server) -> None:
    def narrow(handler: Handler, body: dict[str, Any]) -> bool:
        asked = body["sampling_params"]["max_new_tokens"]
        if asked <= 20:
            return False
        words = (
            "Requested token count exceeds the model's maximum context length of 512 tokens. You "
            f"requested a total of {491 + asked} tokens: 491 tokens from the input messages and "
            f"{asked} tokens for the completion."
        )
        handler.send({"error": {"message": words}}, 400)
        return True

    server.act = narrow
    branches = three(server)
    assert all(b.finish is not Finish.FAILED for b in branches)
    assert all(b.generated_tokens <= 20 for b in branches)


def test_what_is_in_flight_can_be_aborted_from_another_thread(sglang: Server) -> None:
    sglang.act = only_bad(lambda h, b: sglang.released.wait(60))
    with runtime(sglang) as opened:
        found: list[Branch] = []
        thread = threading.Thread(target=lambda: found.extend(opened.branch([expansion(3)])))
        thread.start()
        until(lambda: any(seed_of(c) == BAD for c in sglang.calls) and len(sglang.calls) == 3)
        began = time.monotonic()
        opened.abort()
        thread.join(30)
        assert time.monotonic() - began < 30
        assert found[1].error == "BranchFailed: aborted"
        until(lambda: len(sglang.aborted) >= 1)
        sglang.act = lambda h, b: False  # later calls are not touched
        assert [b.finish for b in opened.branch([expansion(3)])] == [Finish.STOP] * 3


def test_connections_that_went_stale_are_replaced_without_a_word(sglang: Server) -> None:
    with runtime(sglang) as opened:
        opened.branch([expansion(3)])
        for connection in list(sglang.connections.values()):
            connection.shutdown(2)
        assert [b.finish for b in opened.branch([expansion(3)])] == [Finish.STOP] * 3
    assert len([c for c in sglang.calls if c["rid"].endswith("-1")]) == 0


def test_no_request_is_sent_twice_under_one_id(sglang: Server) -> None:
    """Something between closed a kept connection: the server may have the request all the same,
    and SGLang refuses a second one of the same id, or worse."""
    ids: set[str] = set()
    dropped: list[str] = []

    def act(handler: Handler, body: dict[str, Any]) -> bool:
        if body["rid"] in ids:
            handler.send({"error": f"Duplicate request ID detected: {body['rid']}"}, 400)
            return True
        ids.add(body["rid"])
        if kept and len(dropped) < 3:
            dropped.append(body["rid"])
            handler.drop()
            return True
        return False

    kept = False
    sglang.act = act
    with runtime(sglang) as opened:
        opened.branch([expansion(4)])
        kept = True
        branches = opened.branch([expansion(2)])
        again = opened.branch([expansion(2)])
    assert len(dropped) == 3
    assert [b.error for b in [*branches, *again]] == [None] * 4


JOB = ReasoningJob(
    question="How many?",
    options=SearchOptions(strategy="step", rollouts=16, seed=3, early_stop=False),
)


def test_a_search_goes_on_without_the_branches_that_failed(sglang: Server) -> None:
    def some(handler: Handler, body: dict[str, Any]) -> bool:
        seed = seed_of(body)
        if seed is None or seed % 4:
            return False
        handler.send({"error": "no"}, 400)
        return True

    sglang.act = some
    with runtime(sglang) as opened:
        done = run_search(JOB, make_plan(JOB, opened), opened, Journal())
    rollouts = done.search.tree.rollouts
    failed = [r for r in rollouts if r.finish is Finish.FAILED]
    assert len(rollouts) == 16
    assert 0 < len(failed) < 16
    assert all("answered 400" in str(r.error) for r in failed)
    assert done.search.ranked()


def test_a_server_that_only_fails_ends_the_search_as_unavailable(server: Server) -> None:
    with runtime(server) as opened:
        fixed = make_plan(JOB, opened)
        server.act = lambda h, b: (h.send({}, 400), True)[1]
        with pytest.raises(RuntimeUnavailable, match="branches failed"):
            run_search(JOB, fixed, opened, Journal())


def test_a_search_that_is_stopped_ends_in_the_middle_of_a_round(sglang: Server) -> None:
    class Stopping(Journal):
        reason: StopReason | None = None

        def should_stop(self) -> StopReason | None:
            return self.reason

    journal = Stopping()
    with runtime(sglang) as opened:
        fixed = make_plan(JOB, opened)
        sglang.act = lambda h, b: (
            bool(b["sampling_params"]["max_new_tokens"]) and (sglang.released.wait(60) or True)
        )

        def cancel() -> None:
            until(lambda: sglang.calls)
            journal.reason = StopReason.CANCELLED
            while not done:
                opened.abort()
                time.sleep(0.02)

        done: list[Any] = []
        threading.Thread(target=cancel).start()
        done.append(run_search(JOB, fixed, opened, journal))
    assert done[0].search.stop_reason is StopReason.CANCELLED
    assert json.dumps(done[0].plan.to_json())


@pytest.mark.parametrize("all_new", [True, False])
def test_a_server_that_vanished_is_noticed_long_before_the_deadline(
    sglang: Server, monkeypatch: pytest.MonkeyPatch, all_new: bool
) -> None:
    """One that is still there is waited for, though a connection to it may be dead."""
    monkeypatch.setattr(connections, "_ASK_EVERY_S", 0.5)
    asked = threading.Event()

    def hang(handler: Handler, body: dict[str, Any]) -> bool:
        asked.set()
        return handler.server.released.wait(60)

    with silent_proxy(sglang.url) as proxy:
        seconds = 60.0 if all_new else 4.0
        through = f"http://127.0.0.1:{proxy.port}"
        with runtime(through, MARCO_RUNTIME_TIMEOUT_S=seconds) as opened:
            sglang.act = hang
            found: list[Branch] = []
            search = threading.Thread(target=lambda: found.extend(opened.branch([expansion(1)])))
            search.start()
            assert asked.wait(30)
            proxy.cut(all_new=all_new)
            search.join(50)
    (branch,) = found
    assert branch.finish is Finish.FAILED
    assert ("deadline" in str(branch.error)) != all_new, branch.error


def test_no_thread_waits_for_a_server_that_drips_when_asked_whether_it_is_there(
    sglang: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_ASK_EVERY_S", 0.2)
    drips, answer = threading.Event(), sglang.handler.do_GET

    def drip(handler: Handler) -> None:
        if not drips.is_set():
            answer(handler)
            return
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            while not handler.server.released.wait(0.05):
                handler.wfile.write(b"x")

    def hang(handler: Handler, body: dict[str, Any]) -> bool:
        drips.set()
        return handler.server.released.wait(60)

    monkeypatch.setattr(sglang.handler, "do_GET", drip)
    with runtime(sglang, MARCO_RUNTIME_TIMEOUT_S=1) as opened:
        before = set(threading.enumerate())
        sglang.act = hang
        (branch,) = opened.branch([expansion(1)])
        assert branch.finish is Finish.FAILED
        theirs = [t for t in set(threading.enumerate()) - before if t.name.endswith("(run)")]
        until(lambda: not any(thread.is_alive() for thread in theirs))
        assert not sglang.released.is_set()
