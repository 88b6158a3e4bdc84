"""What a finished job gives back. Frozen values that serialise to JSON."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field

from marco_search.jobs.validation import Described


class JobState(StrEnum):
    """Where a job stands (marco_search.store.queue.states has the transitions)."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"


class Answer(Described):
    """One of the n best distinct answers."""

    model_config = ConfigDict(frozen=True)

    rank: int = Field(ge=1, description="1 is the best")
    text: str = Field(description="As a reader should see it")
    normalised: str = Field(description="The form that votes are counted on")
    confidence: float = Field(ge=0, le=1, description="Mean value of its rollouts, 0 to 1")
    votes: int = Field(ge=1, description="Rollouts that reached it")
    share: float = Field(ge=0, le=1, description="Its part of the vote's total weight, 0 to 1")
    output: str = Field(description="The Output part alone, of its most confident rollout")
    thought: str | None = Field(
        None, description="The Thought of the same rollout, where it was asked for"
    )
    rollout_ids: tuple[int, ...] = Field(
        (), exclude=True, description="The rollouts that reached it"
    )


class JobResult(Described):
    """Outcome of one job. Tokens are counts over the whole search; seconds are of searching."""

    model_config = ConfigDict(frozen=True)

    job_id: str | None = Field(None, description="None for a search that was never stored")
    kind: str = Field(description="Which kind of job it was")
    state: JobState = Field(description="succeeded, failed, cancelled, expired or dead")
    answers: tuple[Answer, ...] = Field((), description="The best first")
    strategy: str = Field(description="How it was to be searched")
    stop_reason: str | None = Field(None, description="Why the search ended")
    vote: str | None = Field(
        None,
        description="How the answers were ranked: vote counts rollouts, weighted adds up their "
        "confidences to the power of sharpness, best takes the most confident. None: never begun",
    )
    sharpness: float | None = Field(None, description="The power of a weighted vote")
    confidence_quantile: float | None = Field(
        None,
        description="Part of the model's latest jobs whose confidence is lower, 0 to 1; None: "
        "not stored",
    )
    rollouts: int = Field(0, ge=0, description="Rollouts made")
    nodes: int = Field(0, ge=0, description="Nodes below the root")
    generated_tokens: int = Field(0, ge=0, description="Tokens generated")
    prompt_tokens: int = Field(0, ge=0, description="Tokens of all prefixes that were forked")
    cached_tokens: int = Field(0, ge=0, description="Of those, served from the prefix cache")
    seconds: float = Field(0.0, ge=0, description="Seconds of searching, over all attempts")
    model: str | None = Field(None, description="Name of the model")
    revision: str | None = Field(None, description="Revision of its weights")
    error_type: str | None = Field(None, description="Class name from marco_search.errors")
    error: str | None = Field(None, description="Its message")
    expected: str | None = Field(None, description="As the caller gave it")
    correct: bool | None = Field(
        None, description="Best answer against `expected`; None where there is none"
    )

    @property
    def answer(self) -> Answer | None:
        """The best answer, or None if the search found none."""
        return self.answers[0] if self.answers else None
