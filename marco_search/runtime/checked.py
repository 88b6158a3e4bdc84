"""Checks the results of a custom runtime like the replies of a server.

An invalid result fails its branch, and an exception that is not a MarcoError means that the runtime
is unavailable. Neither fails a job or reaches the trail, where verification would reject it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from marco_search.errors import BranchFailed, MarcoError, RuntimeUnavailable
from marco_search.runtime import reply
from marco_search.runtime.base import Runtime, RuntimeInfo
from marco_search.search.branches import (
    TOP_K,
    Branch,
    BranchRequest,
    Expansion,
    Finish,
    ReflectionPlacement,
    Segment,
    Token,
    TurnFormat,
)

log = logging.getLogger(__name__)
_USAGE = ("prompt_tokens", "cached_tokens", "seconds")


class CheckedRuntime:
    """Wraps a runtime, and uses only its valid branches (see `Runtime`)."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.render, self.abort, self.close = runtime.render, runtime.abort, runtime.close

    @property
    def info(self) -> RuntimeInfo:
        """The model and engine behind it."""
        return self._runtime.info

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        """One branch a request, in order; one that is missing or unsound has failed."""
        try:
            found = {branch.branch_id: branch for branch in self._runtime.branch(expansions)}
        except MarcoError:
            raise
        except Exception as error:
            log.exception("the runtime %s failed", self.info.name)
            raise RuntimeUnavailable(f"{type(error).__name__}: {error}") from error
        return [
            sound(found.get(request.branch_id), request, expansion.turn)
            for expansion in expansions
            for request in expansion.branches
        ]


def sound(branch: Branch | None, request: BranchRequest, turn: TurnFormat) -> Branch:
    """The branch as the trail can have it; a failed one if it can't be right."""
    try:
        if branch is None:
            raise BranchFailed("the runtime returned nothing for it")
        if branch.finish is Finish.FAILED:
            (error,) = reply.storable([str(branch.error)])
            branch = replace(branch, segments=(), error=error)
        else:
            _check_reflection(branch, request, turn)
        return _checked(branch, request.max_new_tokens)
    except BranchFailed as error:
        reason = f"{BranchFailed.__name__}: {error}"
        return Branch(branch_id=request.branch_id, finish=Finish.FAILED, error=reason)


def _check_reflection(branch: Branch, request: BranchRequest, turn: TurnFormat) -> None:
    """The reflection phrase stands where it was asked for, and is all that was inserted."""
    inserted = {i: s.text for i, s in enumerate(branch.segments) if s.forced and s.text}
    for text in inserted.values():
        if text.strip() != turn.reflection.strip():
            raise BranchFailed(f"{text!r} was inserted, which is not the reflection phrase")
    text = "".join(segment.text for segment in branch.segments)
    places = [*inserted]
    match request.reflect:
        case ReflectionPlacement.NO:
            fits = not places
        case ReflectionPlacement.FIRST:
            fits = places == [0]
        case ReflectionPlacement.AT_END:
            full = branch.generated_tokens >= request.max_new_tokens
            room = not (full and text.endswith(turn.thought_ends))
            fits = places == [1] or not (places or (room and turn.end_in(text) >= 0))
    if not fits:
        raise BranchFailed(f"the reflection phrase is not where {request.reflect} has it")


def _checked(branch: Branch, most: int) -> Branch:
    if branch.generated_tokens > most:
        raise BranchFailed(f"{branch.generated_tokens} tokens came, at most {most} were asked for")
    texts = {i: text for i, text in branch.texts.items() if isinstance(text, str)}
    texts = dict(zip(texts, reply.storable(list(texts.values())), strict=True))
    return replace(
        branch,
        segments=tuple(map(_segment, branch.segments)),
        texts=texts,
        **reply.usage({name: getattr(branch, name) for name in _USAGE}, "seconds"),
    )


def _segment(segment: Segment) -> Segment:
    """Log-probabilities as float32, candidates best first, texts that Postgres can hold."""
    tokens = segment.tokens
    chosen = [(token.logprob, token.id, token.text) for token in tokens]
    texts = reply.pieces(chosen) if tokens else [segment.text]
    if "".join(texts) != segment.text:
        raise BranchFailed("the tokens' texts do not make up the text")
    texts = reply.storable(texts)
    if not tokens:
        return Segment(texts[0])
    tops = [_candidates(token) for token in tokens]
    made = map(Token, reply.ids(chosen), texts, reply.logprobs(chosen), tops)
    return Segment("".join(texts), tuple(made))


def _candidates(token: Token) -> reply.Candidates:
    rows = [(logprob, number) for number, logprob in token.top]
    if not rows:
        raise BranchFailed("a token without the log-probabilities of the best candidates")
    found = zip(reply.ids(rows), reply.logprobs(rows), strict=True)
    return tuple(sorted(found, key=lambda pair: pair[1], reverse=True)[:TOP_K])
