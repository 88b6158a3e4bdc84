"""Jobs and their results: what all kinds of jobs (marco_search.kinds) have in common.

All are frozen values that serialise to JSON; wrong input raises InvalidJob. `Job.expected` is
for reporting only: no prompt and no search ever reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from math import isfinite
from typing import Annotated, Any, ClassVar, Literal, TypedDict

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from marco_search.errors import InvalidProfile
from marco_search.jobs.validation import (
    Described,
    Input,
    as_json,
    at_most,
    flaw,
    nearest,
    one_of,
    shown,
    spelt,
    within,
)
from marco_search.search.config import STRATEGIES
from marco_search.search.rewards import known_rewards
from marco_search.search.tree import Shortfalls

MAX_TEXT_CHARS = 65_536
"""Longest question, text or prompt, in characters. The model's context is usually shorter,
but only the runtime knows that limit, and reports it as PromptTooLong."""
MAX_TENANT_CHARS = 64
MAX_METADATA_ENTRIES = 32
SYSTEM_PROMPTS = {
    "marco-o1": (
        "你是 Marco-o1，一个训练有素的 AI 助手，"
        "由阿里巴巴国际数字商业集团的 AI Business 团队研发。\n\n"
        "## 回答格式\n"
        "先思考，再作答。思考过程写在 <Thought> 标签内，最终结果写在 <Output> 标签内。\n"
        "<Thought> 内尽量使用英文；引用原文时保留原文的语言，数学内容用 markdown 书写。\n"
        "<Output> 内使用用户提问所用的语言。\n"
    )
}
"""Names that `system_prompt` accepts in place of a text. "marco-o1": our wording of the deployed
Marco-o1's."""

MetadataValue = str | int | float | bool
Text = Annotated[str, at_most(MAX_TEXT_CHARS)]
ProfileName = Annotated[
    str,
    spelt(
        "[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "at most 64 letters, digits, '.', '_' and '-', and begin with a letter or a digit",
    ),
]


class SearchOptions(Input):
    """Strategy, budgets and sampling of one job. Tokens are generated tokens.

    None means the strategy's own value. The expert fields override the strategy.
    """

    strategy: Annotated[str, one_of(lambda: STRATEGIES)] = Field(
        default="auto",
        description=f"How the tree is searched (docs/search.md): {', '.join(STRATEGIES)}",
    )
    rollouts: int = Field(
        default=16, ge=1, le=4096, description="Maximum number of rollouts (for cot: 1)"
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        lt=2**63,
        description="Maximum number of tokens over the whole search; None: no limit",
    )
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Maximum search time in seconds, without queueing. Checked between rounds: "
        "the current round is finished. None: no limit",
    )
    max_new_tokens: int = Field(
        default=1024,
        ge=1,
        le=131_072,
        description="Maximum number of tokens of one branch; clipped to the context",
    )
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="Sampling temperature; 0 is greedy. None: as the strategy has it",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of all randomness of the search")
    reflection: Literal["never", "branch", "always"] | None = Field(
        default=None, description="When a finished thought is reconsidered: never, branch or always"
    )
    answers: int = Field(
        default=3, ge=1, le=100, description="Number of best distinct answers to return"
    )
    early_stop: bool = Field(default=True, description="Stop when the vote is settled")
    exploration: float | None = Field(default=None, ge=0, le=100, description="c of UCT or PUCT")
    branching: int | None = Field(default=None, ge=1, le=256, description="Branches of one fork")
    width: int | None = Field(
        default=None, ge=1, le=256, description="Samples drawn at an inner node"
    )
    selection: Literal["uct", "puct"] | None = Field(
        default=None, description="Formula that chooses the next node: uct or puct"
    )
    reward: Annotated[str, one_of(known_rewards)] | None = Field(
        default=None,
        description="What a rollout's vote weighs and its path backs up (docs/rewards.md): "
        f"{', '.join(known_rewards())}. None: as the strategy has it",
    )
    verifier: Annotated[str, at_most(64)] | None = Field(
        default=None,
        description="Name of a verifier of the worker's (MARCO_VERIFIERS): it accepts or rejects "
        "answers, or rates them",
    )

    profile: ProfileName | None = Field(
        default=None,
        description="Name of the model's profile (docs/profiles.md); None: by the model's name",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the profile or of SearchConfig to set otherwise, by name",
    )

    @model_validator(mode="before")
    @classmethod
    def _named_as_before(cls, data: object) -> object:
        # Jobs that version 0.1.0 stored: "path" is the default.
        if not isinstance(data, dict) or "value" not in data:
            return data
        kept = {name: value for name, value in data.items() if name != "value"}
        return kept | ({"reward": data["value"]} if data["value"] not in (None, "path") else {})

    @field_validator("verifier")
    @classmethod
    def _instead_of_a_reward(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("reward") is not None:
            raise ValueError("what it says is the reward: leave reward out")
        return value

    @field_validator("overrides")
    @classmethod
    def _known_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value:
            from marco_search import profiles  # which imports its messages from here

            if len(as_json(value, allow_nan=True)) > MAX_TEXT_CHARS:
                raise ValueError(f"more than {MAX_TEXT_CHARS:,} characters")
            for name in ("chat_template", "fallback_template"):
                if "{" in str(value.get(name)):
                    # A template is a program that would run on every worker, however long it takes.
                    raise within(
                        name,
                        "a job can't carry a template; put the profile into "
                        "MARCO_HOME/profiles where searches run and name it, or set MARCO_PROFILE",
                    )
            try:
                profiles.override(profiles.load(profiles.NEUTRAL), value)
            except InvalidProfile as error:
                if error.field is None:
                    raise ValueError(error.reason) from None
                raise within(error.field, error.reason) from None
            as_json(value)  # a NaN where the profile takes any value
        return value


def fill_options(options: Mapping[str, Any], own: SearchOptions) -> SearchOptions:
    """A job's own options, and `options` where it sets none. Raises InvalidJob."""
    given = own.model_dump(exclude_unset=True)
    overrides = {k: v for k, v in options.get("overrides", {}).items() if k not in given}
    overrides |= given.get("overrides", {})
    return SearchOptions(**{**options, **given, **({"overrides": overrides} if overrides else {})})


class SearchOptionsDict(TypedDict, total=False):
    """The fields of SearchOptions as keyword arguments."""

    strategy: str
    rollouts: int
    max_tokens: int | None
    max_seconds: float | None
    max_new_tokens: int
    temperature: float | None
    seed: int
    reflection: Literal["never", "branch", "always"] | None
    answers: int
    early_stop: bool
    exploration: float | None
    branching: int | None
    width: int | None
    selection: Literal["uct", "puct"] | None
    reward: str | None
    verifier: str | None
    profile: str | None
    overrides: dict[str, Any]


def _moment(value: object) -> object:
    """A point in time from ISO 8601 text, which must have a time zone to be unambiguous."""
    if value is None:
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(
            f"{shown(value)} is not a time; write 2030-01-31T18:00:00Z or +01:00 in place of Z"
        ) from None
    if (offset := moment.utcoffset()) is None:
        raise ValueError(f"{shown(value)} has no time zone; add Z, or an offset like +01:00")
    try:
        universal = moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{shown(value)} is not in the years 1 to 9999, UTC") from None
    # Outside of Postgres' range; all else stays as given, since it is part of the job's hash.
    return universal if abs(offset) >= timedelta(hours=16) else moment


class Job(Input):
    """Fields of all jobs. A kind adds its own fields and says which one is its subject."""

    subject_field: ClassVar[str]
    """Name of the field with the caller's own text."""

    kind: str
    options: SearchOptions = Field(default=SearchOptions(), description="How it is searched")
    tenant: Annotated[str, at_most(MAX_TENANT_CHARS)] | None = Field(
        default=None, description="Tenant it belongs to; None: the producer's"
    )
    idempotency_key: Annotated[str, at_most(200)] | None = Field(
        default=None,
        description="Your name for the request, unique per tenant; submitted twice, it is one job",
    )
    custom_id: Annotated[str, at_most(256)] | None = Field(
        default=None, description="Your name for it, repeated in its result; need not be unique"
    )
    endpoint: Literal["/v1/chat/completions"] | None = Field(
        default=None,
        description="Set for requests in OpenAI's format, which results then have, too",
    )
    priority: Literal["low", "normal", "high"] = Field(
        default="normal", description="Order among the tenant's own jobs: low, normal or high"
    )
    deadline: Annotated[datetime, BeforeValidator(_moment)] | None = Field(
        default=None, description="Deadline, after which no round starts; give it or expires_in_s"
    )
    expires_in_s: float | None = Field(
        default=None,
        gt=0,
        le=366 * 86_400,
        description="The same, in seconds after submission",
    )
    metadata: dict[str, MetadataValue] = Field(
        default_factory=dict,
        description=f"Up to {MAX_METADATA_ENTRIES} names and values of yours, kept with the job",
    )
    system_prompt: Annotated[str, at_most(16_384)] | None = Field(
        default=None,
        description="A text, or the name of a preset (marco-o1); None: the profile's",
    )
    expected: Annotated[str, at_most(4_096)] | None = Field(
        default=None, description="The right answer, for comparison only; no search ever sees it"
    )

    @property
    def subject(self) -> str:
        """The caller's own text."""
        return str(getattr(self, self.subject_field))

    @field_validator("metadata", mode="before")
    @classmethod
    def _small_metadata(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError(f"must be an object of names and values, not {shown(value)}")
        if len(value) > MAX_METADATA_ENTRIES:
            raise ValueError(f"{len(value)} entries, at most {MAX_METADATA_ENTRIES} are allowed")
        for name, entry in value.items():
            problem = _metadata_flaw(name, entry)
            if problem is not None:
                raise ValueError(f"entry {shown(name)}: {problem}")
        return value

    @field_validator("expected", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        """Data sets have numbers for answers."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        return str(value) if isinstance(value, int) or isfinite(value) else value

    @field_validator("expires_in_s")
    @classmethod
    def _one_deadline(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("deadline") is not None:
            raise ValueError("give either deadline or expires_in_s")
        return value

    @field_validator("system_prompt")
    @classmethod
    def _known_preset(cls, value: str | None) -> str | None:
        # A single word close to a preset's name is a typo, not a prompt.
        if value is not None and value not in SYSTEM_PROMPTS and " " not in value:
            meant = nearest(value, SYSTEM_PROMPTS)
            if meant is not None:
                raise ValueError(f"unknown preset {shown(value)}; did you mean {meant!r}?")
        return value


def _metadata_flaw(name: object, value: object) -> str | None:
    if not isinstance(name, str):
        return "names must be text"
    problem = flaw(name, 64)
    if problem is not None:
        return f"name {problem}"
    if isinstance(value, str):
        return flaw(value, 1_024) if value else None
    if not isinstance(value, int | float):
        return f"must be text, a number, true or false, not {shown(value)}"
    if isinstance(value, float) and not isfinite(value):
        return "must be a finite number"
    # Postgres may store a float as a whole number.
    return None if -(2**63) <= value < 2**63 else "a number beyond 64 bits; give it as text"


_LEFT_OUT = {"source": "zh", "target": "en", "style": "colloquial"}
"""Fields of kinds that a hash omits at these values (see marco_search.audit.formats)."""


def payload_hash(job: Job) -> str:
    """SHA-256 (hex) of the job's canonical JSON.

    Tenant, idempotency key and custom_id are left out, since they only name the payload. Fields at
    their default are left out as well, so that a field added later does not change the hash of old
    jobs; of a kind's own fields only those whose defaults every verification knows.
    """
    own = type(job).model_fields.keys() - Job.model_fields.keys()
    apart = {"tenant", "idempotency_key", "custom_id", *own}
    payload = job.model_dump(mode="json", exclude=apart, exclude_defaults=True)
    fields = job.model_dump(mode="json", include=own).items()
    payload |= {n: v for n, v in fields if n not in _LEFT_OUT or v != _LEFT_OUT[n]}
    payload["kind"] = job.kind
    # Explicit `options` with only defaults are the same as none.
    if not payload.get("options"):
        payload.pop("options", None)
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


class JobState(StrEnum):
    """A job's status (marco_search.store.queue.states has the transitions)."""

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
    text: str = Field(description="The answer for display")
    normalised: str = Field(description="The normalised form that votes are counted by")
    confidence: float = Field(
        ge=0, le=1, description="Mean of what its rollouts' votes weigh, 0 to 1"
    )
    votes: int = Field(ge=1, description="Rollouts that reached it")
    share: float = Field(ge=0, le=1, description="Its share of the total weight of votes, 0 to 1")
    output: str = Field(description="The Output part of its most confident rollout")
    thought: str | None = Field(None, description="The Thought of the same rollout, if requested")
    rollout_ids: tuple[int, ...] = Field(
        (), exclude=True, description="The rollouts that reached it"
    )


class JobResult(Described):
    """Outcome of one job. Tokens are totals of the whole search, seconds the time of searching."""

    model_config = ConfigDict(frozen=True)

    job_id: str | None = Field(None, description="None for a search that was never stored")
    tenant: str | None = Field(None, description="Tenant it belongs to")
    batch_id: str | None = Field(None, description="The batch it was submitted in")
    batch_line: int | None = Field(None, description="Its line there, from 1")
    custom_id: str | None = Field(None, description="The caller's name for the line")
    idempotency_key: str | None = Field(None, description="The caller's name for the request")
    metadata: dict[str, Any] | None = Field(None, description="The caller's metadata")
    endpoint: str | None = Field(
        None, exclude=True, description="Set for a request in OpenAI's format"
    )
    subject: str | None = Field(None, exclude=True, description="The question, text or prompt")
    kind: str = Field(description="Which kind of job it was")
    state: JobState = Field(description="succeeded, failed, cancelled, expired or dead")
    answers: tuple[Answer, ...] = Field((), description="The best first")
    strategy: str = Field(description="Strategy of the search; for auto, the one that was used")
    stop_reason: str | None = Field(None, description="Why the search ended")
    vote: str | None = Field(
        None,
        description="How the answers were ranked: vote counts rollouts, weighted adds up min(1, "
        "(v / e^reference)^(sharpness / spread)) of their values v, best takes the most confident. "
        "None: never begun",
    )
    sharpness: float | None = Field(None, description="Of a weighted vote, as `vote` says")
    spread: float | None = Field(None, description="The same")
    reference: float | None = Field(None, description="The same")
    reward: str | None = Field(
        None, description="Reward by which votes are weighted: confidence, ..."
    )
    verifier: str | None = Field(None, description="Name of the verifier, for that reward")
    confidence_quantile: float | None = Field(
        None,
        description="Share of the model's latest jobs with a lower confidence, 0 to 1; None: "
        "not stored",
    )
    rollouts: int = Field(0, ge=0, description="Rollouts made")
    shortfalls: Shortfalls = Field(
        Shortfalls(),
        description="Rollouts that failed, were cut off, never ended their thought, hold no "
        "answer, have no score, or were rejected",
    )
    max_new_tokens: int | None = Field(None, description="Maximum number of tokens of a branch")
    profile: str | None = Field(None, description="Name and hash of the model's profile")
    nodes: int = Field(0, ge=0, description="Nodes below the root")
    generated_tokens: int = Field(0, ge=0, description="Tokens generated")
    prompt_tokens: int = Field(0, ge=0, description="Tokens of all prefixes that were forked")
    cached_tokens: int = Field(0, ge=0, description="Of those, served from the prefix cache")
    seconds: float = Field(0.0, ge=0, description="Seconds of searching, over all attempts")
    model: str | None = Field(None, description="Name of the model")
    revision: str | None = Field(None, description="Revision of its weights")
    error_type: str | None = Field(None, description="Class name from marco_search.errors")
    error: str | None = Field(None, description="Its message")
    redacted_at: datetime | None = Field(
        None, description="When its texts were redacted; the texts shown are replacements"
    )
    archived: str | None = Field(
        None, description="The month whose archive has its answers, shortfalls and tree"
    )
    expected: str | None = Field(None, description="As the caller gave it")
    correct: bool | None = Field(
        None,
        description="Best answer against `expected`, false where there is no answer; None: "
        "nothing was expected, or no search ended",
    )

    @property
    def answer(self) -> Answer | None:
        """The best answer, or None if the search found none."""
        return self.answers[0] if self.answers else None

    @property
    def shortfall(self) -> str | None:
        """Why rollouts did not complete, and what to do about it; None if all completed."""
        return explained(self.shortfalls, self.rollouts, self.max_new_tokens)


def explained(found: Shortfalls, rollouts: int, max_new_tokens: int | None) -> str | None:
    """`found` in words, with what may help; None if all rollouts completed."""
    was = "was" if found.cut_off == 1 else "were"
    reasons = [
        (found.cut_off, f"{was} cut off at {found.cut_off_at} tokens"),
        (found.untagged, "never ended the thought as the profile expects"),
        (found.unanswered, "ended without an answer that can be read"),
        (found.failed, "failed"),
        (found.unscored, "have no score from the reward model or the verifier"),
        (found.rejected, "were rejected"),
    ]
    parts = [f"{n} {how}" for n, how in reasons if n]
    if not parts:
        return None
    alone = next((how for n, how in reasons if n == rollouts), None)
    whole = "the only rollout" if rollouts == 1 else f"all {rollouts} rollouts"
    text = f"{whole} {alone}" if alone else f"of {rollouts} rollouts {', '.join(parts)}"
    if 2 * found.cut_off >= rollouts:
        budget = max_new_tokens is not None and found.cut_off_at < max_new_tokens
        text += f": raise {'--max-tokens' if budget else '--max-new-tokens'}"
    elif 2 * (found.untagged + found.unanswered) >= rollouts:
        text += ": another profile or a system prompt may help (docs/profiles.md)"
    return text
