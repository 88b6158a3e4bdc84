"""Numbers in text, read exactly: what they are worth and where they stand.

Rules. A unit or a currency says nothing about which number it is: "$5", "5 dollars" and "5"
are one number. The percent sign is such a unit: "25%" and "25 percent" are 25, which is not
0.25 and not 1/4. Per mille is a ratio (5‰ is 1/200). A comma always separates thousands; the
decimal sign is a point. No rounding: 0.33 is not 1/3.

All functions want text that went through `fold` and `plain`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from marco_search.kinds.chinese_numbers import DIGIT_CHARS, UNIT_CHARS, parse_chinese
from marco_search.kinds.english_numbers import SCALES, parse_english

MAX_DIGITS = 100
"""Longer digit runs are not numbers anybody gives as an answer, and cost time."""

_PLAIN = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,32}(?![0-9]|,[0-9])"
    r"|[0-9]{1,2}(?:,[0-9]{2}){1,32},[0-9]{3}(?![0-9]|,[0-9])"  # 12,34,567
    r"|[0-9]{1,3}(?:'[0-9]{3}){1,32}(?![0-9])"
    r"|[0-9]{1,3}(?: [0-9]{3}){1,32}(?! ?[0-9])"
    r"|[0-9]{1,3}(?:_[0-9]{3}){1,32}(?![0-9])"
    r"|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
)
_CURRENCY = r"(?:(?:(?:US|HK|A|C|NT)?[$€£¥₹₩￥]|RMB|USD|EUR)[ ]?)?"
_SIGN = r"(?:(?<![\w)\]}%])[-+]|(?:minus|negative)[ ]|负)?"
_POWER = r"(?:[ ]?[×x*·][ ]?10\^|[eE])(?P<power>[-+]?[0-9]{1,4})(?![0-9])"
# 千 and 百 that begin a unit do not multiply: 2千克 is 2 kg, 5百分点 is 5 points.
_CHINESE_SCALE = r"[ ]?(?P<chinese>(?:千(?![克米瓦卡赫帕焦伏字])|百(?!分)|万|亿)[0-9.十百千万亿]*)"
_ENGLISH_SCALE = rf"[ ](?P<scale>hundred|{'|'.join(SCALES)})\b|(?P<k>[kK])(?![A-Za-z])"
NUMBER = re.compile(
    rf"(?<![A-Za-z_\\0-9])(?<![A-Za-z]-)(?P<sign>{_SIGN}){_CURRENCY}(?P<sign2>{_SIGN})"
    rf"(?:(?P<whole>[0-9]+)[ ](?P<top1>[0-9]+)/(?P<bottom1>[0-9]+)(?![0-9.])"
    r"|(?P<bottom3>[0-9]+)分之(?P<top3>[0-9]+)"
    rf"|(?P<top2>{_PLAIN})[ ]?/[ ]?(?P<bottom2>{_PLAIN})"
    rf"|10\^(?P<ten>[-+]?[0-9]{{1,4}})(?![0-9.])"
    rf"|(?P<plain>{_PLAIN})(?:{_POWER}|{_CHINESE_SCALE}|{_ENGLISH_SCALE})?"
    r")(?P<unit>[ ]?[%‰])?",
    re.IGNORECASE,
)
CHINESE = re.compile(
    rf"负?[0-9{DIGIT_CHARS}{UNIT_CHARS}]+(?:又[0-9{DIGIT_CHARS}{UNIT_CHARS}]+)?"
    rf"(?:分之[0-9{DIGIT_CHARS}{UNIT_CHARS}]+)?(?:点[{DIGIT_CHARS}]+[万亿]?)?|一半"
)
"""A run that may be a Chinese numeral; `parse_chinese` decides."""


@dataclass(frozen=True, slots=True)
class Found:
    """A number at text[start:end]."""

    value: Fraction
    start: int
    end: int


def number_key(value: Fraction) -> str:
    """The one way a value is written: "42", "-0.75", or "1/3" where decimals do not end."""
    bottom, twos, fives = value.denominator, 0, 0
    while bottom % 2 == 0:
        bottom, twos = bottom // 2, twos + 1
    while bottom % 5 == 0:
        bottom, fives = bottom // 5, fives + 1
    places = max(twos, fives)
    if bottom != 1 or places > 30:
        return str(value)
    if not places:
        return str(value.numerator)
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def digit_numbers(text: str) -> list[Found]:
    """All numbers written with digits, in order. Those without a finite value are left out."""
    found = []
    for match in NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            found.append(Found(value, match.start(), match.end()))
    return found


def parse_number(text: str) -> Fraction | None:
    """The value of `text` if it is a number and nothing else, in digits or words."""
    text = text.strip()
    match = NUMBER.fullmatch(text)
    if match:
        return _value(match)
    value = parse_chinese(text.replace(" ", ""))
    if value is not None:
        return value
    if text.startswith("百分之") or len(text) > MAX_DIGITS:
        return None
    words = parse_english(text)
    return None if words is None else Fraction(words)


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > MAX_DIGITS:
        return None
    if match["whole"]:
        top, bottom = int(match["top1"]), int(match["bottom1"])
        # "5 10/2" is no mixed number.
        value = int(match["whole"]) + Fraction(top, bottom) if 0 < top < bottom else None
    elif match["top3"]:
        below = int(match["bottom3"])
        value = Fraction(int(match["top3"]), below) if below else None
    elif match["top2"]:
        bottom_value = _plain(match["bottom2"])
        value = _plain(match["top2"]) / bottom_value if bottom_value else None
    elif match["ten"]:
        value = _power_of_ten(match["ten"])
    elif match["chinese"]:
        value = parse_chinese(match["plain"].replace(" ", "") + match["chinese"])
    else:
        scale = _scale(match)
        value = None if scale is None else _plain(match["plain"]) * scale
    if value is None:
        return None
    if match["unit"] and match["unit"].strip() == "‰":
        value /= 1000
    negative = (match["sign"] not in ("", "+")) != (match["sign2"] not in ("", "+"))
    return -value if negative else value


def _plain(text: str) -> Fraction:
    return Fraction(re.sub("[,' _]", "", text))


def _scale(match: re.Match[str]) -> Fraction | None:
    if match["power"]:
        return _power_of_ten(match["power"])
    if match["scale"]:
        return Fraction({"hundred": 100, **SCALES}[match["scale"].casefold()])
    return Fraction(1000 if match["k"] else 1)


def _power_of_ten(power: str) -> Fraction | None:
    return Fraction(10) ** int(power) if abs(int(power)) <= MAX_DIGITS else None
