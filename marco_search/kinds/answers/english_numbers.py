"""English number words: twenty-one, three hundred and five, two and a half million."""

from __future__ import annotations

from fractions import Fraction

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_ROUND = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = {word: value for value, word in enumerate(_SMALL.split())}
_TENS = {word: 10 * value for value, word in enumerate(_ROUND.split(), start=2)}
SCALES = {"dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = (
    "third quarter fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
DENOMINATORS = {
    "half": 2, "halves": 2, "fourth": 4, "fourths": 4,
    **{w: n for n, w in enumerate(_PARTS.split(), start=3)},
    **{f"{w}s": n for n, w in enumerate(_PARTS.split(), start=3)},
    "thirtieth": 30, "thirtieths": 30, "fortieth": 40, "fortieths": 40, "fiftieth": 50,
    "fiftieths": 50, "hundredth": 100, "hundredths": 100, "thousandth": 1000, "thousandths": 1000,
}  # fmt: skip


def _either(words: list[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_WORD = _either([*_UNITS, *_TENS, "hundred", *SCALES])
_PART = _either([*DENOMINATORS, "first", "second(?!s)"])
NUMBER_WORDS = (
    rf"\b(?:(?:minus|negative)[ ])?"
    rf"(?:(?:{_WORD})\b|(?:an?|half[ ]an?)(?=[ ](?:hundred|{_either(list(SCALES))}|{_PART})\b))"
    rf"(?:(?:[ -]+|[ ]and[ ](?:an?[ ](?=(?:{_PART})\b))?)(?:{_WORD}|{_PART}|point)\b)*"
)
"""Pattern of a run of number words in a text; `parse_english` says whether it is one number."""


def parse_english(text: str) -> Fraction | None:
    """The value of number words: whole, negative, a fraction or a decimal; None if not one."""
    words = text.casefold().replace("-", " ").split()
    if words[:1] in (["minus"], ["negative"]):
        value = _unsigned(words[1:])
        return None if value is None else -value
    return _unsigned(words)


def _unsigned(words: list[str]) -> Fraction | None:
    if "point" in words:
        return _decimal(words)
    if not any(word in DENOMINATORS for word in words):
        whole = _whole(words)
        return None if whole is None else Fraction(whole)
    if words[-1] in SCALES:  # two and a half million, half a million
        rest = words[:-2] if words[:-1] in (["half", "a"],) else words[:-1]
        value = _unsigned(rest)
        return None if value is None else value * SCALES[words[-1]]
    if "and" in words:  # two and three quarters
        at = len(words) - 1 - words[::-1].index("and")
        before, part = _whole(words[:at]), _fraction(words[at + 1 :])
        return before + part if before is not None and part is not None and part < 1 else None
    return _fraction(words)


def _fraction(words: list[str]) -> Fraction | None:
    """three quarters, a third, half."""
    bottom = DENOMINATORS.get(words[-1]) if words else None
    if bottom is None:
        return None
    if words[:-1] in ([], ["a"]):
        return Fraction(1, bottom) if len(words) > 1 or bottom == 2 else None
    top = _whole(words[:-1])
    ordinal = words[-1][-1] != "s" and words[-1] not in ("half", "quarter") and top != 1
    return None if top is None or ordinal else Fraction(top, bottom)  # twenty-third is no 20/3


def _decimal(words: list[str]) -> Fraction | None:
    at = words.index("point")
    before, digits = _whole(words[:at]), [_UNITS.get(word, 10) for word in words[at + 1 :]]
    if before is None or not digits or max(digits) > 9:
        return None
    return before + Fraction(int("".join(map(str, digits))), 10 ** len(digits))


def _whole(words: list[str]) -> int | None:
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
