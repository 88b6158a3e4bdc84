"""Numerals in words, read exactly.

Chinese: 三百二十一, 两万, 一点五, 3.5万, 1千零1, 3万2, 三分之二, 二〇二四.
English: twenty-one, three hundred and five, two and a half million.
"""

from __future__ import annotations

import re
from fractions import Fraction

_SPELLINGS = str.maketrans(
    "〇兩两壹贰貳叁參肆伍陆陸柒捌玖拾佰仟萬億點負又",
    "零二二一二二三三四五六六七八九十百千万亿点负又",
)
_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")}
_SHORT = frozenset("一二三四五六七八九123456789")
_LARGE_UNITS = (("兆", 10**12), ("亿", 10**8), ("万", 10**4))
_ZEROS = {"兆": 12, "亿": 8, "万": 4, "千": 3, "百": 2, "十": 1}

DIGIT_CHARS = "零〇一二三四五六七八九两兩壹贰貳叁參肆伍陆陸柒捌玖"
UNIT_CHARS = "十百千万亿兆拾佰仟萬億"

_N = r"[一二三四五六七八九]|[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?"
_SECTION = re.compile(
    rf"(?:(?P<k>{_N})千)?零?(?:(?P<h>{_N})百)?零?(?:(?P<t>{_N})?(?P<ten>十))?零?(?P<u>{_N})?"
)
_UNFILLED = re.compile(r"([兆亿万千百十])([0-9]{2,})$")
_MAX_CHARS = 60


def parse_chinese(text: str) -> Fraction | None:
    """The exact value of a Chinese numeral, ASCII digits allowed in it; None if it is none.

    Knows negatives (负), decimals (点), fractions (A分之B, N又A分之B), dozens (打), digits
    spelled one by one (二〇二四), and the short form that leaves out the last unit (两百五 is 250).
    Digits after a unit fill all its places (3万2500), follow a 零 or are such a short form:
    3万25 is not a numeral.
    百分之N is a percentage: its value is N, as that of "N%" is.
    """
    if not text or len(text) > _MAX_CHARS or text.isascii():
        return None
    text = text.translate(_SPELLINGS)
    unfilled = _UNFILLED.search(text)
    if unfilled and len(unfilled[2]) != _ZEROS[unfilled[1]]:
        return None
    if text[0] == "负":
        value = _chinese_unsigned(text[1:])
        return None if value is None else -value
    return _chinese_unsigned(text)


def _chinese_unsigned(text: str) -> Fraction | None:
    if text.endswith("打"):
        value = _chinese_unsigned(text[:-1])
        return None if value is None else 12 * value
    if text in ("半", "一半"):
        return Fraction(1, 2)
    if "分之" in text:
        return _chinese_fraction(text)
    return _chinese_decimal(text)


def _chinese_fraction(text: str) -> Fraction | None:
    before, _, top_text = text.partition("分之")
    whole_text, mixed, bottom_text = before.rpartition("又")
    whole = _chinese_integer(whole_text) if mixed else Fraction(0)
    top = Fraction(100) if top_text == "百" else _chinese_decimal(top_text)
    if top is None or whole is None:
        return None
    if bottom_text == "百":
        return whole + top
    # A lone unit stands for itself here: 千分之一.
    bottom = _chinese_integer(f"一{bottom_text}" if bottom_text in UNIT_CHARS else bottom_text)
    return whole + top / bottom if bottom else None


def _chinese_decimal(text: str) -> Fraction | None:
    whole_text, point, decimals = text.partition("点")
    whole = _chinese_integer(whole_text)
    if not point or whole is None:
        return whole
    scale = dict(_LARGE_UNITS).get(decimals[-1:], 1)  # 一点五万
    if scale > 1:
        decimals = decimals[:-1]
    if not decimals or any(char not in _DIGITS for char in decimals):
        return None
    return (whole + Fraction(_chinese_spelled(decimals), 10 ** len(decimals))) * scale


def _chinese_integer(text: str) -> Fraction | None:
    if len(text) == 2 and _SHORT.issuperset(text) and not text.isdecimal():
        return None  # 五六个: five or six; 三五个: three to five
    if text and all(char in _DIGITS for char in text):
        return Fraction(_chinese_spelled(text))
    for char, unit in _LARGE_UNITS:
        if char in text:
            left, _, right = text.rpartition(char)
            return _chinese_sum(_chinese_integer(left), right, unit)
    return _chinese_section(text)


def _chinese_spelled(digits: str) -> int:
    return int("".join(str(_DIGITS[char]) for char in digits))


def _chinese_sum(left: Fraction | None, right: str, unit: int) -> Fraction | None:
    """left * unit + right."""
    if left is None or left == 0:
        return None
    if len(right) == 1 and right in _SHORT:
        rest: Fraction | None = _chinese_value(right) * unit / 10  # 一万二, 3万2
    elif right:
        rest = _chinese_integer(right.removeprefix("零"))
    else:
        rest = Fraction(0)
    return None if rest is None or rest >= unit else left * unit + rest


def _chinese_section(text: str) -> Fraction | None:
    """A number below 10,000, or one with ASCII digits in front of its first unit."""
    match = _SECTION.fullmatch(text)
    if match is None or not any(match.group("k", "h", "ten", "u")):
        return None
    last = match["u"]
    unit = {"千": 100, "百": 10}.get(text[-2:-1], 1) if last in _SHORT else 1  # 两百五 is 250
    return (
        _chinese_value(match["k"]) * 1000
        + _chinese_value(match["h"]) * 100
        + (_chinese_value(match["t"] or "一") * 10 if match["ten"] else 0)
        + _chinese_value(last) * unit
    )


def _chinese_value(text: str | None) -> Fraction:
    if text is None:
        return Fraction(0)
    return Fraction(_DIGITS[text] if text in _DIGITS else text.replace(",", ""))


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
        value = _english_unsigned(words[1:])
        return None if value is None else -value
    return _english_unsigned(words)


def _english_unsigned(words: list[str]) -> Fraction | None:
    if "point" in words:
        return _english_decimal(words)
    if not any(word in DENOMINATORS for word in words):
        whole = _english_whole(words)
        return None if whole is None else Fraction(whole)
    if words[-1] in SCALES:  # two and a half million, half a million
        rest = words[:-2] if words[:-1] in (["half", "a"],) else words[:-1]
        value = _english_unsigned(rest)
        return None if value is None else value * SCALES[words[-1]]
    if "and" in words:  # two and three quarters
        at = len(words) - 1 - words[::-1].index("and")
        before, part = _english_whole(words[:at]), _english_fraction(words[at + 1 :])
        return before + part if before is not None and part is not None and part < 1 else None
    return _english_fraction(words)


def _english_fraction(words: list[str]) -> Fraction | None:
    """three quarters, a third, half."""
    bottom = DENOMINATORS.get(words[-1]) if words else None
    if bottom is None:
        return None
    if words[:-1] in ([], ["a"]):
        return Fraction(1, bottom) if len(words) > 1 or bottom == 2 else None
    top = _english_whole(words[:-1])
    ordinal = words[-1][-1] != "s" and words[-1] not in ("half", "quarter") and top != 1
    return None if top is None or ordinal else Fraction(top, bottom)  # twenty-third is not 20/3


def _english_decimal(words: list[str]) -> Fraction | None:
    at = words.index("point")
    before, digits = _english_whole(words[:at]), [_UNITS.get(word, 10) for word in words[at + 1 :]]
    if before is None or not digits or max(digits) > 9:
        return None
    return before + Fraction(int("".join(map(str, digits))), 10 ** len(digits))


def _english_whole(words: list[str]) -> int | None:
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
