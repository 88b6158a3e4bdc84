"""Languages a translation can name: ISO 639-1 codes and names, accepted either way."""

from __future__ import annotations

from marco_search.jobs.text import hint, shown

NAMES = {
    "ar": "Arabic",
    "bn": "Bengali",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "ms": "Malay",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "sw": "Swahili",
    "te": "Telugu",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
    "zh-hant": "Traditional Chinese",
}
"""Code to English name, as the prompt spells it."""

_ALIASES = {
    "中文": "zh",
    "汉语": "zh",
    "英文": "en",
    "英语": "en",
    "日语": "ja",
    "mandarin": "zh",
    "simplified chinese": "zh",
    "zh-tw": "zh-hant",
    "zh-hk": "zh-hant",
    "zh-mo": "zh-hant",
    "nb": "no",
}
_CODES = {name.casefold(): code for code, name in NAMES.items()} | _ALIASES


def language_code(name: str) -> str:
    """The code in NAMES for a code, a regional code ("pt-BR", "zh_CN") or a name ("German").

    Raises ValueError saying what can be used.
    """
    key = name.strip().casefold().replace("_", "-")
    for candidate in (key, key.partition("-")[0]):
        # "zh-hant-tw" keeps its script; every other region or script is dropped.
        if key.startswith("zh-hant"):
            candidate = "zh-hant"
        if candidate in NAMES:
            return candidate
        if candidate in _CODES:
            return _CODES[candidate]
    known = [*NAMES, *_CODES]
    raise ValueError(
        f"unknown language {shown(name)}; use a name such as English or one of the codes "
        f"{', '.join(NAMES)}{hint(key, known) if len(key) > 3 else ''}"
    )
