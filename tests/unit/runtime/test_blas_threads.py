"""One BLAS thread decodes, in every kind of process, even if numpy was loaded before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import threadpoolctl

from marco_search.pocket import MODEL_DIR
from marco_search.runtime.embedded.batch import Batch
from marco_search.runtime.embedded.linear import one_blas_thread
from tests.blas import ROOT, seen, watched
from tests.unit.runtime.embedded_rig import answer, engine_of, request

MARCO = ("-m", "marco_search.cli.main")
QUESTION = "Tom has 3 apples and buys 5 more. How many apples does Tom have now?"
BENCH = """
from marco_search.pocket import MODEL_DIR
from ops.bench import runtime
runtime.search(runtime.open_engine("embedded", MARCO_MODEL=MODEL_DIR), "step", 2)
"""
SCRIPT = f"from marco_search import solve; print(solve({QUESTION!r}, rollouts=4).answer)"


def threads() -> set[int]:
    return {lib["num_threads"] for lib in threadpoolctl.threadpool_info()}


class Watch:
    """Notes the number of threads at each step."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def __call__(self, batch: Batch) -> None:
        self.seen |= threads()


@pytest.mark.parametrize(
    "words",
    [
        (*MARCO, "solve", QUESTION, "--rollouts", "4"),
        (*MARCO, "eval", "heldout_en", "--local", "--limit", "2", "--rollouts", "2"),
        ("-c", SCRIPT),
        ("-c", BENCH),
    ],
    ids=["solve", "eval", "script", "bench"],
)
def test_a_process_decodes_with_one_thread(words: tuple[str, ...], tmp_path: Path) -> None:
    env = {**watched(tmp_path / "seen"), "MARCO_HOME": str(tmp_path / "home")}
    subprocess.run(
        [sys.executable, *words], env=env, cwd=ROOT, check=True, timeout=150, capture_output=True
    )
    assert seen(tmp_path / "seen") == {"[1]"}


def test_the_number_from_before_comes_back_when_nothing_is_decoded() -> None:
    watch = Watch()
    with (
        threadpoolctl.threadpool_limits(3, "blas"),
        engine_of(MODEL_DIR, on_step=watch) as (_, engine),
    ):
        assert threads() == {3}, "loading a model has given them back"
        for _ in range(3):
            answer(engine.submit(request([5, 6, 7], 3)))
        engine.close()
        assert watch.seen == {1}
        assert threads() == {3}


def test_the_last_of_several_engines_gives_the_threads_back() -> None:
    with threadpoolctl.threadpool_limits(3, "blas"):
        with one_blas_thread():
            with one_blas_thread():
                assert threads() == {1}
            assert threads() == {1}
        assert threads() == {3}


def test_a_child_forked_while_its_parent_decodes_has_a_limit_of_its_own() -> None:
    watch = Watch()
    with (
        threadpoolctl.threadpool_limits(3, "blas"),
        engine_of(MODEL_DIR, on_step=watch) as (_, engine),
    ):
        with one_blas_thread():
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    before = threads()
                    answer(engine.submit(request([5, 6, 7], 3)))
                    engine.close()
                    status = 0 if (before, watch.seen, threads()) == ({3}, {1}, {3}) else 2
                finally:
                    os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
