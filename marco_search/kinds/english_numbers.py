"""English number words: twenty-one, three hundred and five, two million."""

from __future__ import annotations

import re

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_ROUND = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = {word: value for value, word in enumerate(_SMALL.split())}
_TENS = {word: 10 * value for value, word in enumerate(_ROUND.split(), start=2)}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_WORD = "|".join(sorted([*_UNITS, *_TENS, "hundred", *SCALES], key=len, reverse=True))
NUMBER_WORDS = re.compile(
    rf"\b(?:(?:{_WORD}|an?(?= (?:hundred|{'|'.join(SCALES)})\b))"
    rf"(?:(?:[ -]+| and )(?:{_WORD})\b)*)",
    re.IGNORECASE,
)
"""A run of number words in a text; `parse_english` says whether it is one number."""


def parse_english(text: str) -> int | None:
    """The value of whole-number words ("two hundred and five", "minus ten"); None if not one."""
    words = text.casefold().replace("-", " ").split()
    if words[:1] in (["minus"], ["negative"]):
        value = parse_english(" ".join(words[1:])) if len(words) > 1 else None
        return None if value is None or words[1] in ("minus", "negative") else -value
    total, smallest_scale, section = 0, 10**15, 0
    room = 10**3  # the next word must be smaller than this within its section
    for index, word in enumerate(words):
        if word == "and" and 0 < index < len(words) - 1 and words[index - 1] != "and":
            continue
        if word in ("a", "an") and index == 0 and len(words) > 1:
            value = 1
        elif word in _UNITS:
            value = _UNITS[word]
        elif word in _TENS:
            value = _TENS[word]
        elif word == "hundred" and 0 < section < 100:
            section, room = section * 100, 100
            continue
        elif word in SCALES and section > 0 and SCALES[word] < smallest_scale:
            smallest_scale = SCALES[word]
            total, section, room = total + section * smallest_scale, 0, 10**3
            continue
        else:
            return None
        if value >= room or (section == 0 and value == 0 and len(words) > 1):
            return None
        section += value
        room = 10 if value >= 20 else 1  # twenty may take one more word, five none
    return total + section if words else None
