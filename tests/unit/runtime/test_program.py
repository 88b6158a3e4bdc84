"""The fork program: what a search gets back, also when a backend fails or hangs."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from sglang.lang.backend.base_backend import BaseBackend

from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.program import ForkRuntime, error_value, params_of
from marco_search.search.actions import Action
from marco_search.search.branches import (
    MARCO_O1,
    Branch,
    BranchRequest,
    Expansion,
    Finish,
    ReflectionPlacement,
)
from marco_search.search.config import configure
from marco_search.search.mcts import Search
from tests.toy import PROMPT, answer_of, generate

INFO = RuntimeInfo(name="toy", version="0", model="toy", revision="0", context_tokens=1000)


class ToyBackend(BaseBackend):  # type: ignore[misc]
    """The toy model behind the frontend's interface. `act(seed)` may fail or wait."""

    def __init__(self, act: Any = None) -> None:
        super().__init__()
        self.act = act or (lambda seed: None)
        self.committed: list[str] = []
        self.rids: list[str] = []

    def abort(self) -> None:
        """Nothing can be cut short."""

    def commit_lazy_operations(self, s: Any) -> None:
        self.committed.append(s.text_)

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        own = params_of(s)
        self.rids.append(own.rid)
        acted = self.act(own.seed)
        if acted is not None:
            return acted  # type: ignore[no-any-return]
        tokens = generate(s.text_, own.seed, sampling_params.max_new_tokens, ("1", "2"))
        texts = [t.text for t in tokens]
        matched = next((t for t in texts if t in sampling_params.stop), None)
        if matched is not None:
            tokens = tokens[: texts.index(matched) + 1]
        text = "".join(t.text for t in tokens)
        reason = {"type": "stop", "matched": matched} if matched else {"type": "length"}
        return text.removesuffix(matched or "\0"), {
            "finish_reason": reason,
            "prompt_tokens": 7,
            "cached_tokens": 6,
            "output_token_logprobs": [[t.logprob, t.id, t.text] for t in tokens],
            "output_top_logprobs": [[[p, i, None] for i, p in t.top] for t in tokens],
        }


def request(
    i: int, reflect: ReflectionPlacement = ReflectionPlacement.NO, room: int = 200
) -> BranchRequest:
    return BranchRequest(branch_id=i, seed=i, max_new_tokens=room, temperature=1.0, reflect=reflect)


def run(backend: BaseBackend, *requests: BranchRequest, timeout_s: float = 30.0) -> list[Branch]:
    runtime = ForkRuntime(backend, INFO, None, timeout_s=timeout_s)
    try:
        return runtime.branch([Expansion(node_id=0, prefix=PROMPT, branches=requests)])
    finally:
        runtime.close()


def text_of(branch: Branch) -> str:
    return "".join(s.text for s in branch.segments)


def test_a_fork_commits_its_prefix_once_and_answers_in_order() -> None:
    backend = ToyBackend()
    branches = run(backend, *(request(i) for i in range(6)))
    assert [b.branch_id for b in branches] == list(range(6))
    assert backend.committed == [PROMPT]
    assert len(set(backend.rids)) == 6
    for b in branches:
        assert b.finish is Finish.STOP
        assert text_of(b).endswith("</Output>")
        assert text_of(b) == "".join(t.text for s in b.segments for t in s.tokens)
        assert (b.prompt_tokens, b.cached_tokens) == (7, 6)


def test_a_branch_that_runs_out_of_room_can_be_continued() -> None:
    (branch,) = run(ToyBackend(), request(1, room=3))
    assert branch.finish is Finish.LENGTH
    assert branch.generated_tokens == 3


def test_reflecting_first_puts_the_phrase_before_what_is_generated() -> None:
    (branch,) = run(ToyBackend(), request(1, ReflectionPlacement.FIRST))
    assert branch.segments[0].text == MARCO_O1.reflection + "\n"
    assert branch.segments[0].forced
    assert branch.finish is Finish.STOP


def test_reflecting_at_the_end_takes_the_place_of_closing_the_thought() -> None:
    (branch,) = run(ToyBackend(), request(1, ReflectionPlacement.AT_END))
    first, phrase, second = branch.segments
    assert first.text.endswith(MARCO_O1.end_of_thought)
    assert phrase.text == MARCO_O1.reflection + "\n"
    assert second.text.endswith("</Output>")
    assert branch.finish is Finish.STOP
    assert branch.prompt_tokens == 14


class Written(ToyBackend):
    """Writes these pieces, one a token, and keeps what it was asked to go on from."""

    def __init__(self, *pieces: str) -> None:
        super().__init__()
        self.pieces = pieces
        self.asked: list[str] = []

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        self.asked.append(s.text_)
        text = "".join(self.pieces)
        matched = next(stop for stop in reversed(sampling_params.stop) if stop in text)
        entries = [[-0.1, i, piece] for i, piece in enumerate(self.pieces)]
        return text.partition(matched)[0], {
            "finish_reason": {"type": "stop", "matched": matched},
            "output_token_logprobs": entries,
            "output_top_logprobs": [[entry] * 5 for entry in entries],
        }


def test_a_reflection_follows_the_tokens_that_the_tree_keeps() -> None:
    """Without the one in which the end of the thought begins, whatever else that holds."""
    backend = Written("It is 5", ".</", "Thought>", "<Output>5</Output>")
    asked = request(1, ReflectionPlacement.AT_END)
    (branch,) = run(backend, asked)
    config = configure("step", rollouts=1, reflection="always", root_width=1)
    search = Search(config, PROMPT, answer_of)
    assert len(search.ask()) == 1
    search.tell([replace(branch, branch_id=0)])
    path = search.tree.rollouts[0].path
    phrase = next(i for i in path if search.tree.nodes[i].action == Action.REFLECTION)
    assert backend.asked == [PROMPT, PROMPT + search.tree.text(phrase)]
    assert branch.continuation(MARCO_O1) == search.tree.text(path[-1])


def test_the_token_budget_covers_both_halves_of_a_reflection() -> None:
    for room in range(1, 30):
        (branch,) = run(ToyBackend(), request(1, ReflectionPlacement.AT_END, room))
        assert branch.generated_tokens <= room


def test_a_thought_that_leaves_no_room_for_its_reflection_is_cut_off() -> None:
    full = error_value("PromptTooLong", "the prompt has 1000 tokens")
    backend = ToyBackend(lambda seed: full if seed == 2 else None)
    (branch,) = run(backend, request(1, ReflectionPlacement.AT_END))
    assert (branch.finish, branch.error) == (Finish.LENGTH, None)
    (thought,) = branch.segments
    assert thought.text.endswith(MARCO_O1.end_of_thought)


def test_a_failed_child_is_a_value_and_its_siblings_stand() -> None:
    backend = ToyBackend(lambda seed: error_value("BranchFailed", "no") if seed == 1 else None)
    branches = run(backend, *(request(i) for i in range(3)))
    assert [b.finish for b in branches] == [Finish.STOP, Finish.FAILED, Finish.STOP]
    assert branches[1].error == "BranchFailed: no"


@pytest.mark.filterwarnings("ignore:Error in stream_executor")
def test_even_an_exception_in_a_backend_only_fails_its_child() -> None:
    def act(seed: int) -> None:
        if seed == 2:
            raise OSError("gone")

    branches = run(ToyBackend(act), *(request(i) for i in range(3)))
    assert [b.finish for b in branches] == [Finish.STOP, Finish.STOP, Finish.FAILED]
    assert "gone" in str(branches[2].error)


def test_a_child_that_hangs_fails_at_its_deadline() -> None:
    release = threading.Event()

    def act(seed: int) -> None:
        if seed == 0:
            release.wait(60)

    began = time.monotonic()
    branches = run(ToyBackend(act), request(0), request(1), timeout_s=0.3)
    assert time.monotonic() - began < 30
    release.set()
    assert branches[0].finish is Finish.FAILED
    assert "deadline" in str(branches[0].error)
    assert branches[1].finish is Finish.STOP


def test_log_probs_that_make_no_sense_fail_the_branch() -> None:
    def act(seed: int) -> tuple[str, dict[str, Any]]:
        top = [[-0.1, i, "x"] for i in range(5 if seed else 3)]
        logprob = float("nan") if seed == 1 else -0.1
        meta = {
            "finish_reason": {"type": "length"},
            "output_token_logprobs": [[logprob, 0, "x"]],
            "output_top_logprobs": [top] if seed != 3 else [],
        }
        return "x", meta if seed != 2 else {"finish_reason": {"type": "length"}}

    branches = run(ToyBackend(act), *(request(i) for i in range(5)))
    errors = [b.error for b in branches]
    assert "3 candidates" in str(errors[0])
    assert "not a log-probability" in str(errors[1])
    assert "no log-probabilities" in str(errors[2])
    assert "1 tokens came with 0" in str(errors[3])
    assert errors[4] is None


def test_a_prompt_too_long_for_the_model_is_reported() -> None:
    backend = ToyBackend(lambda seed: error_value("PromptTooLong", "1200 tokens, 1000 fit"))
    branches = run(backend, request(0), request(1))
    assert [b.error for b in branches] == ["PromptTooLong: 1200 tokens, 1000 fit"] * 2


def test_threads_end_with_their_branches() -> None:
    others = set(threading.enumerate())  # of other tests in this process
    backend = ToyBackend()
    runtime = ForkRuntime(backend, INFO, None, timeout_s=30)
    expansion = Expansion(
        node_id=0, prefix=PROMPT, branches=tuple(request(i, room=5) for i in range(8))
    )
    for _ in range(25):
        runtime.branch([expansion, expansion])
    runtime.close()
    before = time.monotonic()
    while set(threading.enumerate()) - others and time.monotonic() - before < 20:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= others
