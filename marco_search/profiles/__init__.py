"""Profiles: what marco-search has to know about a family of models, as data.

A profile is a TOML file. Some are included here; a user's own are in MARCO_HOME/profiles, or given
by path. The one whose `models` matches the model's name best is used, unless one is named. Fields
that a file omits have the defaults below, which are those of the profile "neutral".
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from marco_search.errors import InvalidJob, InvalidProfile, SearchError
from marco_search.jobs.validation import (
    Described,
    Input,
    explain,
    hint,
    one_of,
    spelt,
    unstorable_in,
    within,
)
from marco_search.search.branches import MARCO_O1, TurnFormat
from marco_search.search.config import (
    AUTO,
    DEFAULT_STRATEGY,
    STRATEGIES,
    SearchConfig,
    config_adapter,
)

SHIPPED = Path(__file__).resolve().parent
NEUTRAL = "neutral"
SEARCH_FIELDS = {f.name for f in fields(SearchConfig)} - {"strategy", "seed", "turn", "profile"}
"""Fields of SearchConfig that a profile may set."""
_SAMPLING = ("temperature", "top_p", "max_new_tokens")
_ABOUT = {"name", "models", "measured_on"}  # change no search
_STARTS = (
    "\\boxed", "####", "Final answer", "Final Answer", "The answer is", "the answer is",
    "The final answer is", "the final answer is", "Answer:", "**Answer", "答案", "答：",
)  # fmt: skip
_REFLECTIONS = {
    "en": MARCO_O1.reflection,
    "zh": "等等！我可能犯了一些错误！我需要从头重新思考。",
    "ja": "待って！どこかで間違えたかもしれません！最初から考え直す必要があります。",
    "ko": "잠깐! 실수가 있었을지도 모릅니다! 처음부터 다시 생각해야 합니다.",
    "ru": "Стоп! Возможно, я допустил ошибки! Нужно обдумать всё с самого начала.",
}

Probability = Annotated[float, Field(gt=0, le=1)]


class Example(Described):
    """One solved question before the real one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: str = Field(description="The question")
    assistant: str = Field(description="The whole turn with the answer")


class Profile(Input):
    """What is known about a family of models."""

    name: Annotated[
        str,
        spelt(r"[a-z0-9][a-z0-9._-]*", "lower-case letters, digits, '.', '_' and '-'"),
    ] = Field(default=NEUTRAL, description="Its name")
    models: tuple[str, ...] = Field(
        default=(), description="Model names it is for, with * for any text; in lower case"
    )
    chat_template: str = Field(
        default="model",
        description="model: the model's own, from its folder or its server; chatml; or Jinja text",
    )
    fallback_template: str = Field(
        default="", description="chatml or Jinja text, where the model's own can't be had"
    )
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="Variables of the chat template, such as enable_thinking"
    )
    system_prompt: str = Field(
        default="", description="A text or a preset (marco-o1), for jobs without their own"
    )
    examples: tuple[Example, ...] = Field(
        default=(), description="Solved questions before each question: user, assistant"
    )
    opening: str = Field(
        default="", description="Text inserted at the beginning of the model's turn"
    )
    thought: str = Field(default="", description="Tag that begins a thought; empty: none")
    end_of_thought: str = Field(default="", description="Tag that ends a thought; empty: none")
    output: str = Field(default="", description="Tag that begins the output; empty: none")
    end_of_output: str = Field(default="", description="Tag that ends the output; empty: none")
    stops: tuple[str, ...] = Field(
        default=(), description="Texts that end a turn, beside the model's own end"
    )
    answer_starts: tuple[str, ...] = Field(
        default=_STARTS,
        description="Without tags: the sentence with one of these texts begins the answer",
    )
    reflection_texts: dict[str, str] = Field(
        default=_REFLECTIONS, description="What makes a thought reconsider, by language; en is "
        "for all others",
    )  # fmt: skip
    steps: Literal["line", "sentence"] = Field(
        default="line", description="What a step of a thought is"
    )
    temperature: float | None = Field(default=None, ge=0, le=2, description="Of sampling")
    top_p: Probability | None = Field(default=None, description="Nucleus of sampling")
    max_new_tokens: int | None = Field(
        default=None, ge=1, lt=2**31, description="Maximum tokens of a branch"
    )
    strategy: Annotated[str, one_of(lambda: STRATEGIES.keys() - {DEFAULT_STRATEGY})] = Field(
        default=AUTO, description="The strategy that auto stands for"
    )
    search: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of SearchConfig; in a table named after a strategy, for that alone",
    )
    calibration: dict[str, Any] = Field(
        default_factory=dict, description="The same, as measured by `marco calibrate`"
    )
    measured_on: str = Field(default="", description="Where its values come from")

    @field_validator("*", mode="before")
    @classmethod
    def _storable(cls, value: object) -> object:
        if problem := unstorable_in(value):
            raise ValueError(problem)
        return value

    @field_validator("models", "examples", "stops", "answer_starts", mode="before")
    @classmethod
    def _lists(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("search", "calibration")
    @classmethod
    def _search_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        tables = {k: v for k, v in value.items() if k in STRATEGIES and isinstance(v, dict)}
        for table in ({k: v for k, v in value.items() if k not in tables}, *tables.values()):
            _check_search_fields(table)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        if "en" not in self.reflection_texts:
            raise ValueError("reflection_texts: needs a text for en, the default of all others")
        if any(end in self.stops for end in self.turn("en").thought_ends):
            raise ValueError("a text that ends a thought can't also be in `stops`")
        if "" in (*self.stops, *self.answer_starts):
            raise ValueError("stops, answer_starts: an empty text would end every turn at once")
        if bool(self.output) != bool(self.end_of_output):
            raise ValueError("output and end_of_output: give both or none")
        return self

    def turn(self, language: str) -> TurnFormat:
        """How the model writes its turn, with the reflection text for a language."""
        return TurnFormat(
            opening=self.opening,
            thought=self.thought,
            end_of_thought=self.end_of_thought,
            output=self.output,
            end_of_output=self.end_of_output,
            stops=self.stops,
            answer_starts=() if self.end_of_thought else self.answer_starts,
            reflection=self.reflection_texts.get(language, self.reflection_texts["en"]),
        )

    def search_fields(self, strategy: str) -> dict[str, Any]:
        """The fields of SearchConfig that it sets for a strategy; no temperature for a greedy one.

        A job that asks for auto gets `strategy`, and the fields that are set for either.
        """
        auto = strategy == DEFAULT_STRATEGY
        found = {n: v for n in _SAMPLING if (v := getattr(self, n)) is not None}
        found["strategy"] = self.strategy if auto else strategy
        if STRATEGIES[found["strategy"]].get("temperature") == 0:
            found.pop("temperature", None)
        for table in (self.search, self.calibration):
            found |= {k: v for k, v in table.items() if k not in STRATEGIES}
            found |= table.get(found["strategy"], {}) | (table.get(strategy, {}) if auto else {})
        return found

    @cached_property
    def label(self) -> str:
        """Its name and a hash of all that affects a search, as the trail stores it."""
        text = json.dumps(self.model_dump(mode="json", exclude=_ABOUT), sort_keys=True)
        return f"{self.name} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _check_search_fields(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in SEARCH_FIELDS:
            known = hint(name, [*SEARCH_FIELDS, *Profile.model_fields])
            raise within(name, f"unknown field{known}; see docs/profiles.md for all fields")
        if isinstance(value, float) and not math.isfinite(value):  # a plan is stored as JSON
            raise within(name, f"must be a finite number, not {value}")
    try:
        config_adapter().validate_python({"strategy": "auto", "action": "step", **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise within(".".join(map(str, first["loc"])), explain(first)) from None
    except SearchError as error:  # names that no search knows
        raise ValueError(str(error)) from None


def parse(text: str, source: str) -> Profile:
    """The profile in a TOML text. Raises InvalidProfile naming `source` and the field."""
    try:
        return _made(tomllib.loads(text))
    except InvalidProfile as error:
        raise InvalidProfile(f"{source}: {error}") from None
    except (ValueError, RecursionError) as error:  # of tomllib, also for numbers and nesting
        raise InvalidProfile(f"{source}: not valid TOML: {error}") from None


def _made(data: dict[str, Any]) -> Profile:
    try:
        return Profile(**data)
    except InvalidJob as error:
        raise InvalidProfile(error.reason, error.field) from None
    except ValidationError as error:  # fields that do not go together
        raise InvalidProfile(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def read(file: Path) -> Profile:
    """The profile in a file. Raises InvalidProfile."""
    try:
        return _read(file, 0 if file in _shipped() else file.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidProfile(f"{file}: {getattr(error, 'strerror', None) or error}") from None


@lru_cache
def _read(file: Path, _: int) -> Profile:
    return parse(file.read_text(encoding="utf-8"), str(file))


def files(folder: Path | None = None) -> dict[str, Path]:
    """Name to file of the included profiles and of those in `folder`, which take precedence."""
    found = {file.stem: file for file in sorted(folder.glob("*.toml"))} if folder else {}
    for file in _shipped():
        found.setdefault(file.stem, file)
    return found


@cache
def _shipped() -> tuple[Path, ...]:
    return tuple(sorted(SHIPPED.glob("*.toml")))  # otherwise looked up for each job


def is_path(name: str) -> bool:
    """Whether it is a path rather than a name."""
    return "/" in name or name.endswith(".toml")


def load(name: str, folder: Path | None = None) -> Profile:
    """The profile of this name, or in the file of this path. Raises InvalidProfile."""
    known = files(folder)
    if name in known:
        return read(known[name])
    if is_path(name):
        return read(Path(name))
    raise InvalidProfile(
        f"no profile {name!r}; there are {', '.join(sorted(known))}{hint(name, known)}"
    )


def chosen(model: str, folder: Path | None = None) -> Profile:
    """The profile for a model: the longest matching pattern wins, a user's own profiles first.

    `model` is a name as servers and folders have it, such as "Qwen/Qwen3-8B".
    """
    names = {model.lower(), model.lower().rstrip("/").rpartition("/")[2]}
    known = files(folder)
    best = (False, 0), read(known[NEUTRAL])
    for file in known.values():
        profile = read(file)
        fits = [p for p in profile.models if any(fnmatchcase(n, p) for n in names)]
        rank = file.parent != SHIPPED, max(map(len, fits), default=0)
        if fits and rank > best[0]:
            best = rank, profile
    return best[1]


def override(profile: Profile, given: Mapping[str, Any]) -> Profile:
    """`profile` with some of its fields, or fields of SearchConfig, overridden.

    Raises InvalidProfile naming the field.
    """
    if not given:
        return profile
    own = {n: v for n, v in given.items() if n in Profile.model_fields}
    search = {n: v for n, v in given.items() if n not in own}
    data = profile.model_dump(exclude_unset=True) | own
    names = {*search, *own.keys() & {*_SAMPLING}}
    for table in ("search", "calibration"):
        # What is given holds for every strategy.
        data[table] = {
            k: {n: x for n, x in v.items() if n not in names} if k in STRATEGIES else v
            for k, v in data.get(table, {}).items()
            if k not in names
        }
    data["search"] |= search
    try:
        return _made(data)
    except InvalidProfile as error:
        field = error.field or ""
        if "search" not in own:  # the caller wrote its fields without the table
            field = field.removeprefix("search").removeprefix(".")
        raise InvalidProfile(error.reason, field or None) from None


def dumps(profile: Profile) -> str:
    """The profile as a file, every field with its meaning."""
    data = profile.model_dump(mode="json", exclude_none=True)
    tables = ("template_options", "reflection_texts", "search", "calibration")
    lines = []
    for name, value in data.items():
        if name not in tables:
            lines += [f"# {Profile.model_fields[name].description}.", f"{name} = {_toml(value)}"]
    for name in tables:
        lines += ["", f"# {Profile.model_fields[name].description}.", f"[{name}]"]
        lines += [f"{json.dumps(k)} = {_toml(v)}" for k, v in data[name].items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value as TOML writes it; strings, numbers and booleans are as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


_SCRIPTS = (
    ("ja", "\u3040", "\u30ff"), ("zh", "\u3400", "\u9fff"), ("ko", "\uac00", "\ud7af"),
    ("ru", "\u0400", "\u04ff"), ("ar", "\u0600", "\u06ff"), ("hi", "\u0900", "\u097f"),
    ("bn", "\u0980", "\u09ff"), ("te", "\u0c00", "\u0c7f"), ("th", "\u0e00", "\u0e7f"),
)  # fmt: skip


def language_of(text: str) -> str:
    """The language of most of a text's letters, by script; "en" for Latin and others.

    Japanese is recognised by its kana, even among Chinese characters.
    """
    if text.isascii():
        return "en"
    letters = Counter(text)
    count = {"en": sum(n for c, n in letters.items() if c.isascii() and c.isalpha())}
    # One of these characters carries more text than a Latin letter.
    count |= {
        name: 3 * sum(n for c, n in letters.items() if a <= c <= b) for name, a, b in _SCRIPTS
    }
    if count["ja"] * 10 > count["zh"]:
        count["ja"] += count["zh"]
    return max(count, key=count.__getitem__)
