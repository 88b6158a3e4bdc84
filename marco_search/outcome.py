"""Turns a finished search into what the caller gets: ranked answers and totals."""

from __future__ import annotations

from marco_search.driver import Finished
from marco_search.errors import SearchError
from marco_search.jobs import Answer, Job, JobResult
from marco_search.kinds import kind_of
from marco_search.search.answers import RankedAnswer
from marco_search.search.mcts import Search
from marco_search.search.records import ROOT


def ranked_answers(job: Job, search: Search) -> list[RankedAnswer]:
    """All distinct answers of the search, best first, near-duplicates merged as the kind says."""
    return search.ranked(kind_of(job).merge)


def job_result(
    job: Job, finished: Finished, *, job_id: str | None = None, state: str = "succeeded"
) -> JobResult:
    """The result of a job whose search has ended."""
    kind, search, tree = kind_of(job), finished.search, finished.search.tree
    answers = []
    for i, found in enumerate(ranked_answers(job, search)[: job.options.answers], start=1):
        text = kind.assistant_prefix + tree.text(tree.rollouts[found.best_rollout_id].leaf_id)
        extracted = kind.answer(text)
        if extracted is None:
            raise SearchError(f"rollout {found.best_rollout_id} was ranked without an answer")
        answers.append(
            Answer(
                rank=i,
                text=extracted.display,
                normalised=found.key,
                confidence=found.confidence,
                votes=found.votes,
                share=found.share,
                output=kind.output(text) or extracted.display,
                thought=kind.thought(text),
            )
        )
    correct = None
    if job.expected is not None:
        correct = bool(answers) and kind.equal(answers[0].text, job.expected)
    return JobResult(
        job_id=job_id,
        kind=job.kind,
        state=state,
        answers=tuple(answers),
        strategy=finished.plan.config.strategy,
        stop_reason=search.stop_reason,
        vote=finished.plan.config.choice,
        sharpness=finished.plan.config.sharpness,
        rollouts=len(tree.rollouts),
        nodes=sum(1 for n in tree.nodes if n.node_id != ROOT),
        generated_tokens=search.tokens,
        prompt_tokens=sum(r.prompt_tokens for r in tree.rollouts),
        cached_tokens=sum(r.cached_tokens for r in tree.rollouts),
        seconds=finished.seconds,
        model=finished.plan.model,
        revision=finished.plan.revision,
        expected=job.expected,
        correct=correct,
    )
