"""Chinese numerals: 三百二十一, 两万, 一点五, 3.5万, 1千零1, 3万2, 三分之二, 二〇二四."""

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
    3万25 is no numeral.
    百分之N is a percentage: its value is N, as that of "N%" is.
    """
    if not text or len(text) > _MAX_CHARS or text.isascii():
        return None
    text = text.translate(_SPELLINGS)
    if _UNFILLED.search(text) and not _filled(text):
        return None
    if text[0] == "负":
        value = _unsigned(text[1:])
        return None if value is None else -value
    return _unsigned(text)


def _filled(text: str) -> bool:
    match = _UNFILLED.search(text)
    return match is None or len(match[2]) == _ZEROS[match[1]]


def _unsigned(text: str) -> Fraction | None:
    if text.endswith("打"):
        value = _unsigned(text[:-1])
        return None if value is None else 12 * value
    if text in ("半", "一半"):
        return Fraction(1, 2)
    if "分之" in text:
        return _fraction(text)
    return _decimal(text)


def _fraction(text: str) -> Fraction | None:
    before, _, top_text = text.partition("分之")
    whole_text, mixed, bottom_text = before.rpartition("又")
    whole = _integer(whole_text) if mixed else Fraction(0)
    top = Fraction(100) if top_text == "百" else _decimal(top_text)
    if top is None or whole is None:
        return None
    if bottom_text == "百":
        return whole + top
    # A lone unit stands for itself here: 千分之一.
    bottom = _integer(f"一{bottom_text}" if bottom_text in UNIT_CHARS else bottom_text)
    return whole + top / bottom if bottom else None


def _decimal(text: str) -> Fraction | None:
    whole_text, point, decimals = text.partition("点")
    whole = _integer(whole_text)
    if not point or whole is None:
        return whole
    scale = dict(_LARGE_UNITS).get(decimals[-1:], 1)  # 一点五万
    if scale > 1:
        decimals = decimals[:-1]
    if not decimals or any(char not in _DIGITS for char in decimals):
        return None
    return (whole + Fraction(_spelled(decimals), 10 ** len(decimals))) * scale


def _integer(text: str) -> Fraction | None:
    if len(text) == 2 and _SHORT.issuperset(text) and not text.isdecimal():
        return None  # 五六个: five or six; 三五个: three to five
    if text and all(char in _DIGITS for char in text):
        return Fraction(_spelled(text))
    for char, unit in _LARGE_UNITS:
        if char in text:
            left, _, right = text.rpartition(char)
            return _sum(_integer(left), right, unit)
    return _section(text)


def _spelled(digits: str) -> int:
    return int("".join(str(_DIGITS[char]) for char in digits))


def _sum(left: Fraction | None, right: str, unit: int) -> Fraction | None:
    """left * unit + right."""
    if left is None or left == 0:
        return None
    if len(right) == 1 and right in _SHORT:
        rest: Fraction | None = _value(right) * unit / 10  # 一万二, 3万2
    elif right:
        rest = _integer(right.removeprefix("零"))
    else:
        rest = Fraction(0)
    return None if rest is None or rest >= unit else left * unit + rest


def _section(text: str) -> Fraction | None:
    """A number below 10,000, or one with ASCII digits in front of its first unit."""
    match = _SECTION.fullmatch(text)
    if match is None or not any(match.group("k", "h", "ten", "u")):
        return None
    last = match["u"]
    unit = {"千": 100, "百": 10}.get(text[-2:-1], 1) if last in _SHORT else 1  # 两百五 is 250
    return (
        _value(match["k"]) * 1000
        + _value(match["h"]) * 100
        + (_value(match["t"] or "一") * 10 if match["ten"] else 0)
        + _value(last) * unit
    )


def _value(text: str | None) -> Fraction:
    if text is None:
        return Fraction(0)
    return Fraction(_DIGITS[text] if text in _DIGITS else text.replace(",", ""))
