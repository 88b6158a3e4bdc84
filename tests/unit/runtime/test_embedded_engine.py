"""The decoding thread: what callers get when all goes well, and when it does not."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from marco_search.errors import RuntimeUnavailable
from marco_search.runtime.embedded.decoder import Decoder
from tests.tiny_model import write_model
from tests.unit.runtime.embedded_rig import WAIT_S, answer, engine_of, failure, request


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m")


def test_a_fork_finds_its_whole_prefix_cached(folder: Path) -> None:
    with engine_of(folder) as (_, engine):
        prefix = list(range(100))
        answer(engine.submit(request(prefix, 0)))
        children = [engine.submit(request(prefix, 5, seed=i)) for i in range(6)]
        assert [answer(c).cached_tokens for c in children] == [100] * 6
        longer = answer(engine.submit(request([*prefix, 7, 8], 1)))
        assert (longer.prompt_tokens, longer.cached_tokens) == (102, 100)
        inside = answer(engine.submit(request(prefix[:40], 1)))
        assert inside.cached_tokens == 39  # the last token's logits were not kept


def test_more_requests_than_rows_are_all_served(folder: Path) -> None:
    with engine_of(folder, max_rows=3) as (_, engine):
        tickets = [engine.submit(request([i, i + 1], i % 7)) for i in range(40)]
        assert [len(answer(t).tokens) for t in tickets] == [i % 7 for i in range(40)]


def test_sequences_past_a_chunk_border_and_past_many_rows(folder: Path) -> None:
    with engine_of(folder, max_rows=300) as (_, engine):
        tickets = [engine.submit(request([i % 90, 1], 3, seed=i)) for i in range(300)]
        long = engine.submit(request(range(300), 200))
        assert all(len(answer(t).tokens) == 3 for t in tickets)
        assert len(answer(long).tokens) == 200


def test_an_exception_reaches_every_caller_and_the_engine_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_of(folder) as (_, engine):
        good = answer(engine.submit(request(range(20), 5)))
        step = Decoder.step
        calls = 0

        def failing(self: Decoder, *args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise MemoryError("no room")
            return step(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Decoder, "step", failing)
        tickets = [engine.submit(request([i, 2], 50)) for i in range(4)]
        outcomes = [t.exception(WAIT_S) for t in tickets]
        failed = [o for o in outcomes if isinstance(o, RuntimeUnavailable)]
        assert failed, outcomes
        assert all("MemoryError: no room" in str(o) for o in failed)
        again = answer(engine.submit(request(range(20), 5)))
        assert again.tokens == good.tokens


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dying_thread_fails_every_waiting_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(self: Decoder, *args: object) -> object:
        raise SystemExit

    with engine_of(folder, max_rows=2) as (_, engine):
        monkeypatch.setattr(Decoder, "step", dying)
        tickets = [engine.submit(request([i, 2], 50)) for i in range(6)]
        assert all(isinstance(failure(t), RuntimeUnavailable) for t in tickets)


def test_closing_fails_what_is_in_flight_and_ends_the_thread(folder: Path) -> None:
    with engine_of(folder, max_rows=2) as (_, engine):
        tickets = [engine.submit(request([1, 2], 500)) for _ in range(5)]
        engine.close()
        outcomes = [t.exception(WAIT_S) for t in tickets]
        assert all(isinstance(o, RuntimeUnavailable | None) for o in outcomes)
        assert "closed" in str(outcomes[-1])
        late = failure(engine.submit(request([1], 1)))
        assert isinstance(late, RuntimeUnavailable)
        engine.close()
        assert "marco-embedded-engine" not in {t.name for t in threading.enumerate()}


def test_an_abort_fails_what_is_in_flight_and_nothing_later(folder: Path) -> None:
    with engine_of(folder, max_rows=2) as (_, engine):
        engine.abort()
        first = answer(engine.submit(request([3, 4], 2)))
        endless = [engine.submit(request([1, 2], 500)) for _ in range(5)]
        engine.abort()
        later = engine.submit(request([3, 4], 2))
        assert all("aborted" in str(failure(t)) for t in endless)
        assert answer(later).tokens == first.tokens


def test_an_unused_engine_has_no_thread_and_closes(folder: Path) -> None:
    with engine_of(folder):
        assert "marco-embedded-engine" not in {t.name for t in threading.enumerate()}


def test_a_machine_out_of_threads_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with engine_of(folder) as (_, engine):
        with monkeypatch.context() as short:
            short.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError):
                engine.submit(request([1], 1))
        assert len(answer(engine.submit(request([3], 2))).tokens) == 2


def test_a_cancelled_request_frees_its_row(folder: Path) -> None:
    with engine_of(folder, max_rows=1) as (_, engine):
        endless = engine.submit(request([1, 2], 480))
        never = engine.submit(request([1, 2], 480))
        never.cancel()
        endless.cancel()
        assert len(answer(engine.submit(request([3], 2))).tokens) == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_an_engine_of_its_own(folder: Path) -> None:
    with engine_of(folder) as (_, engine):
        expected = answer(engine.submit(request(range(30), 10, seed=3)))
        busy = engine.submit(request([1, 2], 400))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                found = answer(engine.submit(request(range(30), 10, seed=3)))
                engine.close()
                status = 0 if found.tokens == expected.tokens else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert len(answer(busy).tokens) == 400
