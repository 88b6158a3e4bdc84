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


class Described(BaseModel):
    """A model whose docstring, so `help()` too, ends with what its fields mean."""

    @classmethod
    def __pydantic_init_subclass__(cls, **named: Any) -> None:
        super().__pydantic_init_subclass__(**named)
        said = [f"{n}: {f.description}" for n, f in cls.model_fields.items() if f.description]
        cls.__doc__ = "\n    ".join([f"{(cls.__doc__ or '').rstrip()}\n\n    Fields:", *said])


class Edge(Described):
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

    strategy: Strategy = Field("auto", description="How the tree is searched; docs/search.md")
    # Budgets
    rollouts: int = Field(16, ge=1, le=4096, description="Most rollouts (samples, for cot: one)")
    max_tokens: int | None = Field(
        None, ge=1, description="Most tokens over the whole search; None: no limit"
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="Most seconds of searching, queueing not counted. Looked at between rounds: "
        "the round under way is finished. None: no limit",
    )
    max_new_tokens: int = Field(
        1024, ge=1, le=131_072, description="Most tokens of one branch; clipped to the context"
    )
    # Sampling
    temperature: float | None = Field(
        None, ge=0, le=2, description="Of sampling; 0 is greedy. None: as the strategy has it"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="All randomness of the search flows from it")
    reflection: Reflection | None = Field(
        None, description="When the model is told to doubt what it wrote: never, branch or always"
    )
    # Outcome
    answers: int = Field(
        3, ge=1, le=100, description="How many of the best distinct answers are returned"
    )
    early_stop: bool = Field(True, description="Stop when the vote can't change any more")
    # Expert
    exploration: float | None = Field(None, ge=0, le=100, description="c of UCT or PUCT")
    branching: int | None = Field(None, ge=1, le=256, description="Branches of one fork")
    width: int | None = Field(None, ge=1, le=256, description="Samples drawn at an inner node")
    selection: Literal["uct", "puct"] | None = Field(
        None, description="Formula that chooses the next node: uct or puct"
    )
    value: Literal["path", "rollout"] | None = Field(
        None, description="Tokens that a rollout's value averages: of its whole path, or its own"
    )
