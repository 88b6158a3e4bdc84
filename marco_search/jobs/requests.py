"""The jobs a caller submits. Frozen values; wrong input raises InvalidJob.

`expected` is for reporting only: no prompt and no search ever reads it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from marco_search.jobs.languages import language_code
from marco_search.jobs.options import Edge, SearchOptions
from marco_search.jobs.text import (
    MAX_EXPECTED_CHARS,
    MAX_KEY_CHARS,
    MAX_SYSTEM_PROMPT_CHARS,
    MAX_TENANT_CHARS,
    MAX_TEXT_CHARS,
    flaw,
    nearest,
    shown,
)

SYSTEM_PROMPT_PRESETS = ("marco-o1",)
"""Names that `system_prompt` accepts in place of a text (marco_search.kinds.system_prompts)."""
MAX_EXPIRES_IN_S = 366 * 86_400
MAX_METADATA_ENTRIES = 32
MAX_METADATA_CHARS = 1_024  # of one value
_INT64 = 2**63

MetadataValue = str | int | float | bool


def _text(limit: int) -> AfterValidator:
    def check(text: str) -> str:
        problem = flaw(text, limit)
        if problem is not None:
            # Braces would be read as a template.
            raise PydanticCustomError("text", "{problem}", {"problem": problem})
        return text

    return AfterValidator(check)


Text = Annotated[str, _text(MAX_TEXT_CHARS)]


_LARGEST_OFFSET = timedelta(hours=16)


def _moment(value: object) -> object:
    """A point in time from text of ISO 8601. Without a zone nobody could say when it is."""
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
    # What Postgres can't take; anything else stays as given, as it is part of the job's hash.
    return universal if abs(offset) >= _LARGEST_OFFSET else moment


class JobBase(Edge):
    """What all jobs share."""

    options: SearchOptions = Field(SearchOptions(), description="How it is searched")
    tenant: Annotated[str, _text(MAX_TENANT_CHARS)] | None = Field(
        None, description="Who it belongs to; None: the producer's tenant"
    )
    idempotency_key: Annotated[str, _text(MAX_KEY_CHARS)] | None = Field(
        None, description="Your name for the request, unique per tenant: submitted twice, it is one"
    )
    priority: Literal["low", "normal", "high"] = Field(
        "normal", description="Order among the tenant's own jobs: low, normal or high"
    )
    deadline: Annotated[datetime, BeforeValidator(_moment)] | None = Field(
        None, description="Not searched any more after this time; give it or expires_in_s"
    )
    expires_in_s: float | None = Field(
        None, gt=0, le=MAX_EXPIRES_IN_S, description="The same, in seconds from being submitted"
    )
    metadata: dict[str, MetadataValue] = Field(
        default_factory=dict,
        description=f"Up to {MAX_METADATA_ENTRIES} names and values of yours, kept with the job",
    )
    system_prompt: Annotated[str, _text(MAX_SYSTEM_PROMPT_CHARS)] | None = Field(
        None, description="A text, or the name of a preset (marco-o1); None: as the kind has it"
    )
    expected: Annotated[str, _text(MAX_EXPECTED_CHARS)] | None = Field(
        None, description="The right answer, to compare with; no search ever sees it"
    )

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
        return str(value) if isfinite(value) else value

    @field_validator("expires_in_s")
    @classmethod
    def _one_deadline(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("deadline") is not None:
            raise ValueError("give either deadline or expires_in_s")
        return value

    @field_validator("system_prompt")
    @classmethod
    def _known_preset(cls, value: str | None) -> str | None:
        # One word close to a preset's name is a slip, not a prompt.
        if value is not None and value not in SYSTEM_PROMPT_PRESETS and " " not in value:
            meant = nearest(value, SYSTEM_PROMPT_PRESETS)
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
        return flaw(value, MAX_METADATA_CHARS) if value else None
    if isinstance(value, int):
        return None if -_INT64 <= value < _INT64 else "a whole number beyond 64 bits"
    if isinstance(value, float):
        if not abs(value) < float("inf"):
            return "must be a finite number"
        # Postgres keeps it as a whole number, which is then too long.
        return None if -_INT64 <= value < _INT64 else "a number beyond 64 bits; give it as text"
    return f"must be text, a number, true or false, not {shown(value)}"


class ReasoningJob(JobBase):
    """A question with one right answer: a number, an option, yes or no, a few words."""

    kind: Literal["reasoning"] = Field("reasoning", description="Says which kind of job it is")
    question: Text = Field(description="The question")

    @property
    def subject(self) -> str:
        """The caller's own text."""
        return self.question


class TranslationJob(JobBase):
    """A text to translate. Languages by code or name; they are kept as codes."""

    kind: Literal["translation"] = Field("translation", description="Says which kind of job it is")
    text: Text = Field(description="The text to translate")
    source: str = Field("zh", description="Language of the text")
    target: str = Field("en", validate_default=True, description="Language to translate into")
    style: Literal["colloquial", "plain"] = Field(
        "colloquial", description="colloquial: as people say it; plain: close to the text"
    )

    @field_validator("source", "target")
    @classmethod
    def _known_language(cls, value: str) -> str:
        return language_code(value)

    @field_validator("target")
    @classmethod
    def _two_languages(cls, value: str, info: ValidationInfo) -> str:
        if value == info.data.get("source"):
            raise ValueError(f"the same language as source ({value}); give two languages")
        return value

    @property
    def subject(self) -> str:
        """The caller's own text."""
        return self.text


class OpenEndedJob(JobBase):
    """A prompt that several different answers may satisfy."""

    kind: Literal["open_ended"] = Field("open_ended", description="Says which kind of job it is")
    prompt: Text = Field(description="The prompt")

    @property
    def subject(self) -> str:
        """The caller's own text."""
        return self.prompt


Job = ReasoningJob | TranslationJob | OpenEndedJob
JOB_MODELS: dict[str, type[ReasoningJob] | type[TranslationJob] | type[OpenEndedJob]] = {
    "reasoning": ReasoningJob,
    "translation": TranslationJob,
    "open_ended": OpenEndedJob,
}
"""Job kind to its model."""
