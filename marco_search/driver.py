"""Drives one search: plan it, run its rounds against a runtime, keep each round, rank.

The same loop serves the library call (`MemoryJournal`) and the worker, whose journal is
Postgres. A journal that already holds rounds makes the search go on from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from marco_search.errors import PromptTooLong, RuntimeUnavailable, SearchError, SnapshotMismatch
from marco_search.jobs import Job
from marco_search.kinds import Kind, kind_of
from marco_search.runtime.base import Runtime
from marco_search.search.branches import Branch, Expansion, Finish, without_room
from marco_search.search.budgets import StopReason
from marco_search.search.config import Reflection, SearchConfig, Selection, Value
from marco_search.search.mcts import Search
from marco_search.search.records import Node, Rollout, Round
from marco_search.search.strategies import configure


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a search is fixed to, whoever runs it and however often: enough to replay it."""

    config: SearchConfig
    prompt: str  # rendered, up to where the model goes on
    model: str
    revision: str

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same plan back."""
        return {
            "config": self.config.to_json(),
            "prompt": self.prompt,
            "model": self.model,
            "revision": self.revision,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """The plan written by `to_json`."""
        return cls(
            config=SearchConfig.from_json(data["config"]),
            prompt=data["prompt"],
            model=data["model"],
            revision=data["revision"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """What is already kept of a search: records in id order, and the seconds it took."""

    nodes: Sequence[Node] = ()
    rollouts: Sequence[Rollout] = ()
    seconds: float = 0.0


class Journal(Protocol):
    """Where rounds are kept."""

    def load(self) -> Trail:
        """What earlier attempts have kept; an empty trail for a new search."""
        ...

    def append(self, kept: Round, texts: Mapping[int, str]) -> None:
        """Keep one round, all of it or nothing. Raises LeaseLost if it is not ours any more.

        `texts` has what its candidates read, by token id.
        """
        ...

    def should_stop(self) -> StopReason | None:
        """Asked before each round, and when branches failed: a reason to end the search."""
        ...


class MemoryJournal:
    """Keeps nothing: for searches that live and end in this process."""

    def load(self) -> Trail:
        """An empty trail."""
        return Trail()

    def append(self, kept: Round, texts: Mapping[int, str]) -> None:
        """Nothing to do."""

    def should_stop(self) -> StopReason | None:
        """Never."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A search that has ended, and how long all its attempts took, in seconds."""

    plan: Plan
    search: Search
    seconds: float


def plan(job: Job, runtime: Runtime) -> Plan:
    """The plan of a job on the model behind `runtime`."""
    kind, options, info = kind_of(job), job.options, runtime.info
    config = configure(
        options.strategy,
        rollouts=options.rollouts,
        max_tokens=options.max_tokens,
        max_seconds=options.max_seconds,
        max_new_tokens=min(options.max_new_tokens, info.context_tokens),
        temperature=options.temperature,
        seed=options.seed,
        early_stop=None if options.early_stop else False,
        exploration=options.exploration,
        branching=options.branching,
        width=options.width,
        answer_width=kind.answer_width,
        selection=options.selection and Selection(options.selection),
        value=options.value and Value(options.value),
        reflection=_reflection(options.reflection, kind),
    )
    if not kind.one_answer:
        config = replace(config, lead=None)
    prompt = runtime.render(kind.messages(job)) + kind.assistant_prefix
    return Plan(config=config, prompt=prompt, model=info.model, revision=info.revision)


def _reflection(asked: str | None, kind: Kind[Any]) -> Reflection | None:
    """None leaves it to the strategy; where many answers are good there is nothing to mend."""
    if asked is None:
        return None if kind.one_answer else Reflection.NEVER
    return Reflection(asked)


def run_search(
    job: Job,
    fixed: Plan,
    runtime: Runtime,
    journal: Journal,
    *,
    on_round: Callable[[Search], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Finished:
    """Run the job's search to its end, going on from what the journal holds.

    `on_round` is called after each kept round. Raises RuntimeUnavailable when every branch
    of a round failed (the round is not kept), SnapshotMismatch when the model is not the
    plan's, and what the runtime and the journal raise.
    """
    if (runtime.info.model, runtime.info.revision) != (fixed.model, fixed.revision):
        raise SnapshotMismatch(
            f"the search was begun on {fixed.model} ({fixed.revision[:12]}), this runtime has "
            f"{runtime.info.model} ({runtime.info.revision[:12]}): use a runtime with that model"
        )
    kept = journal.load()
    search = restored(job, fixed, kept.nodes, kept.rollouts)
    began = clock() - kept.seconds
    while True:
        reason = journal.should_stop()
        if reason:
            search.stop(reason)
        expansions = search.ask(clock() - began)
        if not expansions:
            return Finished(plan=fixed, search=search, seconds=clock() - began)
        branches = _branches(runtime, expansions, search)
        if any(b.finish is Finish.FAILED for b in branches):
            # They may have failed because the search was told to stop (`Runtime.abort`).
            reason = journal.should_stop()
            if reason:
                search.stop(reason)
                continue
            _refuse_if_all_failed(branches)
        done = search.tell(branches)
        if done is None:
            raise SearchError("the runtime left requests of the round unanswered")
        journal.append(done, {i: text for b in branches for i, text in b.texts.items()})
        if on_round:
            on_round(search)


def _branches(
    runtime: Runtime, expansions: Sequence[Expansion], search: Search
) -> Sequence[Branch]:
    """The round's branches. A path that has grown too long is no failure of the job."""
    try:
        return runtime.branch(expansions)
    except PromptTooLong as error:
        if all(r.finish is Finish.FAILED for r in search.tree.rollouts):
            raise
        said = f"{PromptTooLong.__name__}: {error}"
        return [
            Branch(branch_id=request.branch_id, finish=Finish.FAILED, error=said)
            for expansion in expansions
            for request in expansion.branches
        ]


def restored(job: Job, fixed: Plan, nodes: Sequence[Node], rollouts: Sequence[Rollout]) -> Search:
    """The job's search as it was after the last round in these records (both in id order)."""
    kind = kind_of(job)

    def answer_of(text: str) -> str | None:
        found = kind.answer(kind.assistant_prefix + text)
        return found.key if found else None

    return Search.restore(fixed.config, fixed.prompt, answer_of, nodes, rollouts, kind.merge)


def _refuse_if_all_failed(branches: Sequence[Branch]) -> None:
    """A round of failures only is the runtime's failure, unless no branch had room."""
    failed = all(b.finish is Finish.FAILED for b in branches)
    if failed and not all(without_room(b.error) for b in branches):
        raise RuntimeUnavailable(f"all {len(branches)} branches failed: {branches[0].error}")
