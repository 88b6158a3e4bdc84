"""A `Runtime` over any backend of SGLang's frontend language, and the fork program it runs.

The program commits a prefix once, forks it, and lets every child generate by itself.

This is the one module that speaks SGLang's frontend language. It waits for every child
with a deadline and reads its error, because the frontend's own `join` drops a failed child
silently and can wait for ever.

The language has no way to pass a seed or a request id to one branch, so the program puts a
`BranchParams` among the child's variables, and the backends read it there.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from typing import Any

import sglang as sgl

from marco_search.errors import BranchFailed
from marco_search.metrics import FAILED_TOKENS, in_flight, record
from marco_search.runtime.base import Render, RuntimeInfo, quoting
from marco_search.runtime.chat import render_chatml
from marco_search.runtime.reply import Completion, read_completion
from marco_search.search.branches import (
    TOP_K,
    Branch,
    BranchRequest,
    Expansion,
    Finish,
    Part,
    ReflectionPlacement,
    Segment,
    TurnFormat,
    tokens_before,
    without_room,
)

PARAMS = "marco_branch"
"""The variable that holds a child's BranchParams."""

_GRACE_S = 1.0
"""A backend knows the deadline and says better what happened: it may be this much late."""

_MAX_PROGRAMS = 64
"""Expansions run at once; each holds a thread while it waits for its children."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchParams:
    """What a generate call carries besides its sampling parameters."""

    seed: int  #: 0 <= seed < 2**31
    rid: str  #: request id, unique per call
    deadline: float  #: on time.monotonic(), for the call with all its retries
    parts: tuple[Part, ...]  #: the executor's text in parts (see `Expansion`)


def params_of(executor: Any) -> BranchParams:
    """The values that the fork program put on this executor."""
    found: BranchParams = executor.variables[PARAMS]
    return found


def error_value(kind: str, message: str) -> tuple[str, dict[str, Any]]:
    """What a backend returns from `generate` instead of raising.

    An exception inside a fork's thread makes the frontend drop the child or hang.
    `kind` is the name of a class in marco_search.errors.
    """
    return "", {"error": message, "error_type": kind}


class ForkRuntime:
    """Runs expansions on `backend`, which has `abort` and `shutdown` of its own."""

    def __init__(
        self,
        backend: Any,
        info: RuntimeInfo,
        render: Render | None,
        *,
        timeout_s: float,
        api_key: str | None = None,
    ) -> None:
        """`timeout_s` is for one expansion; `api_key`, the server's, is kept out of errors.

        Without a `render` of the model's own prompts are in ChatML, and `info` says so.
        """
        self.backend = backend
        self.info = replace(info, own_template=render is not None)
        self.render = render or render_chatml
        self._timeout_s = timeout_s
        self._quoted = quoting(api_key)
        self._threads = ThreadPoolExecutor(_MAX_PROGRAMS, "fork")

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """All branches of all expansions at once (see `Runtime.branch`)."""
        # A single one needs no thread of its own. The context has the trace of the search.
        run = map if len(expansions) == 1 else self._threads.map
        runs = [self._run] * len(expansions)
        contexts = [copy_context() for _ in expansions]
        with in_flight(sum(len(expansion.branches) for expansion in expansions)):
            return [b for found in run(Context.run, contexts, runs, expansions) for b in found]

    def _run(self, expansion: Expansion) -> list[Branch]:
        state = _fork_prefix.run(expansion=expansion, seconds=self._timeout_s, backend=self.backend)
        return [replace(b, error=b.error and self._quoted(b.error)) for b in state.ret_value]

    def abort(self) -> None:
        """Fail all branches in flight at once (see `Runtime.abort`)."""
        self.backend.abort()

    def close(self) -> None:
        """Stop threads and the backend; what is in flight fails."""
        self.abort()
        self._threads.shutdown(wait=True)
        self.backend.shutdown()


@sgl.function  # type: ignore[untyped-decorator]
def _fork_prefix(s: Any, expansion: Expansion, seconds: float) -> Any:
    """Fork the prefix into one child per request; returns a Branch per request, in order."""
    requests, parts = expansion.branches, expansion.parts
    deadline = time.monotonic() + seconds
    s.set_var(PARAMS, _params(0, deadline, parts))
    s += expansion.prefix
    s.sync()  # else whether the fork commits the prefix first is a race
    forks = s.fork(len(requests))
    children = [
        _Child(f, r, deadline, parts, expansion.turn)
        for f, r in zip(forks.states, requests, strict=True)
    ]
    try:
        for child in children:
            child.start()
        for child in children:
            child.reflect()
        return [child.branch() for child in children]
    finally:
        for fork in forks.states:
            fork.stream_executor.end()


def _params(seed: int, deadline: float, parts: tuple[Part, ...]) -> BranchParams:
    return BranchParams(seed=seed, rid=uuid.uuid4().hex, deadline=deadline, parts=parts)


class _Child:
    """One branch in flight."""

    def __init__(
        self,
        state: Any,
        request: BranchRequest,
        deadline: float,
        parts: tuple[Part, ...],
        turn: TurnFormat,
    ) -> None:
        self._state = state
        self._request = request
        self._deadline = deadline
        self._parts = parts
        self._turn = turn
        self._calls: list[tuple[str, list[str], int]] = []  # name, stop texts, tokens asked for
        self._done: list[Completion] = []  # of the calls, in order
        self._segments: list[Segment] = []
        self._error: str | None = None

    def start(self) -> None:
        """Begin to generate; returns at once."""
        stops = list(self._turn.stops)
        if self._request.reflect is ReflectionPlacement.FIRST:
            self._force()
        elif self._request.reflect is ReflectionPlacement.AT_END:
            stops += self._turn.thought_ends
        self._generate(self._request.seed, self._request.max_new_tokens, stops)

    def reflect(self) -> None:
        """Where the phrase replaces the end of the thought: wait for that, then continue."""
        if self._request.reflect is not ReflectionPlacement.AT_END:
            return
        self._collect()
        if self._error or self._done[-1].stop not in self._turn.thought_ends:
            return
        left = self._request.max_new_tokens - len(self._done[-1].tokens)
        if left > 0:
            # The phrase follows the thought, without the token in which its end begins and what
            # the server may have sent after that.
            executor, done = self._state.stream_executor, self._done[-1]
            thought = tokens_before(done.tokens, len(done.text))
            sent = executor.variables[self._calls[-1][0]]
            executor.text_ = executor.text_.removesuffix(sent) + "".join(t.text for t in thought)
            self._continue_from(tuple(t.id for t in thought))
            self._force()
            self._generate((self._request.seed + 1) % 2**31, left, list(self._turn.stops))

    def branch(self) -> Branch:
        """The finished branch; a failure is a Branch too."""
        if self._error is None and len(self._done) < len(self._calls):
            self._collect()
        if self._error is None:
            last = self._done[-1]
            terminal = last.stopped and last.stop not in self._turn.thought_ends
            finish = Finish.STOP if terminal else Finish.LENGTH
        else:
            finish, self._segments = Finish.FAILED, []
            record(FAILED_TOKENS, sum(len(c.tokens) for c in self._done))
        return Branch(
            branch_id=self._request.branch_id,
            segments=tuple(self._segments),
            finish=finish,
            prompt_tokens=sum(c.prompt_tokens for c in self._done),
            cached_tokens=sum(c.cached_tokens for c in self._done),
            error=self._error,
            seconds=sum(c.seconds for c in self._done),
            texts={token: text for c in self._done for token, text in c.texts.items()},
        )

    def _force(self) -> None:
        phrase = self._turn.reflection + "\n"
        self._segments.append(Segment(phrase))
        self._state += phrase
        self._continue_from(phrase)

    def _continue_from(self, part: Part) -> None:
        self._parts += (part,) if part else ()

    def _generate(self, seed: int, tokens: int, stops: list[str]) -> None:
        name = f"call{len(self._calls)}"
        self._calls.append((name, stops, tokens))
        self._state.set_var(PARAMS, _params(seed, self._deadline, self._parts))
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
        (name, stops, most), executor = self._calls[-1], self._state.stream_executor
        try:
            wait = max(0.0, self._deadline + _GRACE_S - time.monotonic())
            meta = executor.get_meta_info(name, wait)
            if not isinstance(meta, dict):
                raise BranchFailed(f"the runtime's backend failed: {executor.error_!r}")
            if self._done and without_room(meta.get("error_type")):
                self._segments.pop()  # the phrase: a thought that leaves it no room is cut off
                return
            if "error_type" in meta:
                self._error = f"{meta['error_type']}: {meta['error']}"
                return
            found = read_completion(executor.variables[name], meta, stops=stops, most=most)
        except TimeoutError:
            self._error = "RuntimeUnavailable: no answer before the branch's deadline"
        except BranchFailed as error:
            self._error = f"BranchFailed: {error}"
        else:
            self._done.append(found)
            if found.tokens:
                self._segments.append(Segment("".join(t.text for t in found.tokens), found.tokens))
