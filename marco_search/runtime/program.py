"""The fork program: commit a prefix once, fork it, let every child go on by itself.

This is the one module that speaks SGLang's frontend language. It waits for every child
with a deadline and reads its error, because the frontend's own `join` drops a failed child
silently and can wait for ever.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import sglang as sgl

from marco_search.errors import BranchFailed
from marco_search.runtime.params import VARIABLE, BranchParams
from marco_search.runtime.tokens import read_texts, read_tokens, stopped_at
from marco_search.search.branches import (
    END_OF_OUTPUT,
    END_OF_THOUGHT,
    REFLECTION_PHRASE,
    TOP_K,
    Branch,
    BranchRequest,
    Expansion,
    Finish,
    Reflect,
    Segment,
)

_GRACE_S = 1.0
"""A backend knows the deadline and says better what happened: it may be this much late."""

_PHRASE = Segment(REFLECTION_PHRASE + "\n")


@sgl.function  # type: ignore[untyped-decorator]
def _fork_prefix(s: Any, prefix: str, requests: Sequence[BranchRequest], seconds: float) -> Any:
    """Fork `prefix` into one child per request; returns a Branch per request, in order."""
    deadline = time.monotonic() + seconds
    s.set_var(VARIABLE, _params(0, deadline))
    s += prefix
    s.sync()  # else whether the fork commits the prefix first is a race
    forks = s.fork(len(requests))
    children = [_Child(f, r, deadline) for f, r in zip(forks.states, requests, strict=True)]
    try:
        for child in children:
            child.start()
        for child in children:
            child.reflect()
        return [child.branch() for child in children]
    finally:
        for fork in forks.states:
            fork.stream_executor.end()


def run_expansion(backend: Any, expansion: Expansion, seconds: float) -> list[Branch]:
    """Run one expansion on a backend; one Branch per request, in order, within `seconds`."""
    state = _fork_prefix.run(
        prefix=expansion.prefix, requests=expansion.branches, seconds=seconds, backend=backend
    )
    branches: list[Branch] = state.ret_value
    return branches


def _params(seed: int, deadline: float) -> BranchParams:
    return BranchParams(seed=seed, rid=uuid.uuid4().hex, deadline=deadline)


class _Child:
    """One branch in flight."""

    def __init__(self, state: Any, request: BranchRequest, deadline: float) -> None:
        self._state = state
        self._request = request
        self._deadline = deadline
        self._calls: list[str] = []  # names of the generate calls, in order
        self._metas: list[dict[str, Any]] = []
        self._segments: list[Segment] = []
        self._texts: dict[int, str] = {}
        self._error: str | None = None

    def start(self) -> None:
        """Begin to generate; returns at once."""
        stops = [END_OF_OUTPUT]
        if self._request.reflect is Reflect.FIRST:
            self._force()
        elif self._request.reflect is Reflect.AT_END:
            stops.append(END_OF_THOUGHT)
        self._generate(self._request.seed, self._request.max_new_tokens, stops)

    def reflect(self) -> None:
        """Where the phrase replaces the end of the thought: wait for that, then go on."""
        if self._request.reflect is not Reflect.AT_END:
            return
        self._collect()
        if self._error or stopped_at(self._metas[-1]) != END_OF_THOUGHT:
            return
        left = self._request.max_new_tokens - sum(len(s.tokens) for s in self._segments)
        if left > 0:
            # The frontend's text is without the stop string, so the phrase follows the thought.
            self._force()
            self._generate((self._request.seed + 1) % 2**31, left, [END_OF_OUTPUT])

    def branch(self) -> Branch:
        """The finished branch; a failure is a Branch too."""
        if len(self._metas) < len(self._calls):
            self._collect()
        shared = {
            "prompt_tokens": sum(m.get("prompt_tokens", 0) for m in self._metas),
            "cached_tokens": sum(m.get("cached_tokens", 0) for m in self._metas),
        }
        i = self._request.branch_id
        if self._error is not None:
            return Branch(branch_id=i, finish=Finish.FAILED, error=self._error, **shared)
        ended = stopped_at(self._metas[-1])
        done = ended is not None and ended != END_OF_THOUGHT
        return Branch(
            branch_id=i,
            segments=tuple(self._segments),
            texts=self._texts,
            finish=Finish.STOP if done else Finish.LENGTH,
            seconds=sum(m.get("e2e_latency", 0.0) for m in self._metas),
            **shared,
        )

    def _force(self) -> None:
        self._segments.append(_PHRASE)
        self._state += _PHRASE.text

    def _generate(self, seed: int, tokens: int, stops: list[str]) -> None:
        name = f"call{len(self._calls)}"
        self._calls.append(name)
        self._state.set_var(VARIABLE, _params(seed, self._deadline))
        self._state += sgl.gen(
            name,
            max_tokens=tokens,
            temperature=self._request.temperature,
            top_p=self._request.top_p,
            stop=stops,
            return_logprob=True,
            top_logprobs_num=TOP_K,
            return_text_in_logprobs=True,
        )

    def _collect(self) -> None:
        """Wait for the last call and take its tokens in."""
        name, executor = self._calls[-1], self._state.stream_executor
        meta: dict[str, Any] = {}
        try:
            wait = max(0.0, self._deadline + _GRACE_S - time.monotonic())
            meta = executor.get_meta_info(name, wait) or {}
            if not meta:
                raise BranchFailed(f"the runtime's backend failed: {executor.error_!r}")
            _raise_if_failed(meta)
            tokens = read_tokens(executor.variables[name], meta)
            self._segments.append(Segment("".join(t.text for t in tokens), tokens))
            self._texts |= read_texts(meta)
        except TimeoutError:
            self._error = "BranchFailed: the runtime did not answer before the branch's deadline"
        except BranchFailed as error:
            self._error = str(error) if "error" in meta else f"BranchFailed: {error}"
        self._metas.append(meta)


def _raise_if_failed(meta: dict[str, Any]) -> None:
    if "error" in meta:
        raise BranchFailed(f"{meta.get('error_type', 'BranchFailed')}: {meta['error']}")
    reason = meta.get("finish_reason") or {}
    if reason.get("type") not in ("stop", "length"):
        raise BranchFailed(f"the runtime ended the branch: {reason}")
