"""How a job is to be searched: the options a caller may set."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from marco_search.errors import InvalidJob
from marco_search.jobs.explain import WHOLE, invalid_job

Strategy = Literal[
    "auto",
    "cot",
    "vote",
    "best-of-n",
    "step",
    "mini-step-64",
    "mini-step-32",
    "mini-step-16",
    "mini-step-8",
]
Reflection = Literal["never", "branch", "always"]


class Edge(BaseModel):
    """Base of what callers hand in: frozen, strict, and wrong input raises InvalidJob."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise invalid_job(cls, error) from None
        except InvalidJob as error:
            # SearchOptions is the only model inside another one, under this name.
            field = "options" if error.field == WHOLE else f"options.{error.field}"
            raise InvalidJob(field, error.reason) from None


class SearchOptions(Edge):
    """Strategy, budgets and sampling of one job. Tokens are generated tokens.

    None means: as the strategy has it. The expert fields override the strategy.
    """

    strategy: Strategy = "auto"
    # Budgets
    rollouts: int = Field(16, ge=1, le=4096)
    max_tokens: int | None = Field(None, ge=1)  # over the whole search
    max_seconds: float | None = Field(None, gt=0)  # of searching, queueing not counted
    max_new_tokens: int = Field(1024, ge=1, le=131_072)  # of one branch; clipped to the context
    # Sampling
    temperature: float | None = Field(None, ge=0, le=2)  # 0 is greedy
    seed: int = Field(0, ge=0, lt=2**31)
    reflection: Reflection | None = None
    # Outcome
    answers: int = Field(3, ge=1, le=100)  # the n best distinct answers that are returned
    early_stop: bool = True  # stop when the vote can't change any more
    # Expert
    exploration: float | None = Field(None, ge=0, le=100)  # c of UCT or PUCT
    branching: int | None = Field(None, ge=1, le=256)  # k of one fork
    width: int | None = Field(None, ge=1, le=256)  # samples drawn at an inner node
    selection: Literal["uct", "puct"] | None = None
    value: Literal["path", "rollout"] | None = None  # tokens that a rollout's value averages
