"""What a finished job gives back. Frozen values that serialise to JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

JobKind = Literal["reasoning", "translation", "open_ended"]


class Answer(BaseModel):
    """One of the n best distinct answers. Rank 1 is the best."""

    model_config = ConfigDict(frozen=True)

    rank: int = Field(ge=1)
    text: str  # as a reader should see it
    normalised: str  # the form that votes are counted on
    confidence: float = Field(ge=0, le=1)  # mean value of its rollouts
    votes: int = Field(ge=1)  # rollouts that reached it
    share: float = Field(ge=0, le=1)  # its part of the vote's total weight
    output: str  # the Output part alone, of its most confident rollout
    thought: str | None = None  # the Thought of the same rollout, where it was asked for


class JobResult(BaseModel):
    """Outcome of one job. Tokens are counts over the whole search; seconds are of searching."""

    model_config = ConfigDict(frozen=True)

    job_id: str | None = None  # None for a search that was never stored
    kind: JobKind
    state: str  # of the job: "succeeded", "failed", "cancelled", "dead", ...
    answers: tuple[Answer, ...] = ()  # best first
    strategy: str
    stop_reason: str | None = None  # why the search ended
    # How the answers were ranked: "vote" counts rollouts, "weighted" adds up their confidences
    # to the power of `sharpness`, "best" takes the most confident. None: never begun.
    vote: str | None = None
    sharpness: float | None = None
    # Part of the model's latest jobs whose confidence is lower, 0 to 1; None: not stored.
    confidence_quantile: float | None = None
    rollouts: int = Field(0, ge=0)
    nodes: int = Field(0, ge=0)
    generated_tokens: int = Field(0, ge=0)
    prompt_tokens: int = Field(0, ge=0)
    cached_tokens: int = Field(0, ge=0)  # of the prompt tokens, served from the prefix cache
    seconds: float = Field(0.0, ge=0)
    model: str | None = None
    revision: str | None = None
    error_type: str | None = None  # class name from marco_search.errors
    error: str | None = None  # its message
    expected: str | None = None  # as the caller gave it
    correct: bool | None = None  # best answer against `expected`; None where there is none

    @property
    def answer(self) -> Answer | None:
        """The best answer, or None if the search found none."""
        return self.answers[0] if self.answers else None
