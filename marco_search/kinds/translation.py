"""Translation jobs: colloquial or plain, between any two known languages."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from marco_search.jobs import Job, Text
from marco_search.jobs.validation import hint, shown
from marco_search.kinds.answers.normalization import text_answer
from marco_search.kinds.base import ExtractedAnswer, Kind

LANGUAGES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "fi": "Finnish", "fr": "French", "he": "Hebrew",
    "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "ms": "Malay", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "sw": "Swahili",
    "te": "Telugu", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese", "zh-hant": "Traditional Chinese",
}  # fmt: skip
"""ISO 639-1 code to English name, as the prompt spells it."""
_ALIASES = {
    "中文": "zh", "汉语": "zh", "英文": "en", "英语": "en", "日语": "ja", "mandarin": "zh",
    "simplified chinese": "zh", "zh-tw": "zh-hant", "zh-hk": "zh-hant", "zh-mo": "zh-hant",
    "nb": "no",
}  # fmt: skip
_CODES = {name.casefold(): code for code, name in LANGUAGES.items()} | _ALIASES


def language_code(name: str) -> str:
    """The code in LANGUAGES for a code, a regional code ("pt-BR", "zh_CN") or a name ("German").

    Raises ValueError saying what can be used.
    """
    key = name.strip().casefold().replace("_", "-")
    # "zh-hant-tw" keeps its script; every other region or script is dropped.
    known = "zh-hant" if key.startswith("zh-hant") else key
    for candidate in (known, known.partition("-")[0]):
        if candidate in LANGUAGES or candidate in _CODES:
            return _CODES.get(candidate, candidate)
    raise ValueError(
        f"unknown language {shown(name)}; use a name such as English or one of the codes "
        f"{', '.join(LANGUAGES)}{hint(key, [*LANGUAGES, *_CODES]) if len(key) > 3 else ''}"
    )


class TranslationJob(Job):
    """A text to translate. Languages by code or name; they are kept as codes."""

    subject_field: ClassVar[str] = "text"

    kind: Literal["translation"] = Field(
        default="translation", description="Says which kind of job it is"
    )
    text: Text = Field(description="The text to translate")
    source: str = Field(default="zh", description="Language of the text")
    target: str = Field(
        default="en", validate_default=True, description="Language to translate into"
    )
    style: Literal["colloquial", "plain"] = Field(
        default="colloquial", description="colloquial: as people say it; plain: close to the text"
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


class Translation(Kind[TranslationJob]):
    """A translation's answer is its whole Output; case, quotes and punctuation don't count."""

    model = TranslationJob

    def user_turn(self, job: TranslationJob) -> str:
        """For example "Translate this Chinese text into English: ...".

        Word for word what the shipped model was trained on: do not reword it.
        """
        source, target = LANGUAGES[job.source], LANGUAGES[job.target]
        if job.style == "colloquial":
            return f"Translate this colloquial {source} text into natural {target}: {job.text}"
        return f"Translate this {source} text into {target}: {job.text}"

    def read(self, output: str) -> ExtractedAnswer | None:
        """The whole output."""
        return text_answer(output)
