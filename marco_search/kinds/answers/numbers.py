"""Numbers in text, read exactly: what they are worth.

Rules. A numeral is taken whole or not at all: what touches its digits belongs to it, and if
the whole is not a known form of number it has no value (1,2,3 or 1.2.3). A unit or a
currency says nothing about which number it is: "$5", "5 dollars" and "5" are one number. The
percent sign is such a unit: "25%" and "25 percent" are 25, which is not 0.25 and not 1/4. Per
mille is a ratio (5‰ is 1/200). No rounding: 0.33 is not 1/3.

The decimal sign is a point and a comma separates thousands, unless the numeral itself shows
the other use: 1.234.567, 1.234,5, 1 234,5, 0,188 and 1,57% are read as in German. "3,5" says
neither and has no value.

All functions want text that went through `normalize_unicode` and `strip_latex`.
"""

from __future__ import annotations

import re
from fractions import Fraction

from marco_search.kinds.answers.numerals import (
    DENOMINATORS,
    DIGIT_CHARS,
    SCALES,
    UNIT_CHARS,
    parse_chinese,
    parse_english,
)

MAX_DIGITS = 100
"""Longer digit runs are not numbers anybody gives as an answer, and cost time."""

_SCALES: dict[str, int | Fraction] = {
    "hundred": 10**2, "k": 10**3, **SCALES, **{f"{word}s": n for word, n in SCALES.items()},
    "score": 20, "gross": 144, "halves": Fraction(1, 2), "thirds": Fraction(1, 3),
    **{word: Fraction(1, n) for word, n in DENOMINATORS.items() if word.endswith("ths")},
    "quadrillion": 10**15,
    "m": 10**6, "mn": 10**6, "mln": 10**6, "mio": 10**6, "b": 10**9, "bn": 10**9, "mrd": 10**9,
    "t": 10**12, "tn": 10**12, "lakh": 10**5, "lakhs": 10**5, "crore": 10**7,
    "crores": 10**7, "hundreds": 100, "dutzend": 12, "douzaine": 12, "douzaines": 12, "docena": 12,
    "docenas": 12, "дюжина": 12, "дюжины": 12, "дюжин": 12, "millon": 10**6,
    "tausend": 10**3, "millionen": 10**6, "milliarde": 10**9, "milliarden": 10**9,
    "mille": 10**3, "milliard": 10**9, "milliards": 10**9, "mil": 10**3,
    "millón": 10**6, "millones": 10**6, "тыс": 10**3, "тысяча": 10**3, "тысячи": 10**3,
    "тысяч": 10**3, "млн": 10**6, "миллион": 10**6, "миллиона": 10**6, "миллионов": 10**6,
    "млрд": 10**9, "миллиард": 10**9, "миллиарда": 10**9, "миллиардов": 10**9,
}  # fmt: skip
_LETTERS = ("k", "m", "b", "t")
_SCALE_WORDS = "|".join(sorted({*_SCALES} - {*_LETTERS}, key=len, reverse=True))

_DIGITS = (
    r"(?:[0-9]{1,3}(?:[ ][0-9]{3}){1,32}(?:[.,][0-9]+)?(?![.,'_]?[0-9])"
    r"|[0-9]+\.[0-9]+\.{3}"  # 0.333...
    r"|[0-9]{1,9}\.[0-9]{0,9}\([0-9]{1,9}\)"  # 0.(3)
    r"|[0-9]+(?:[.,'_][0-9]+)*|\.[0-9]+(?![.,]?[0-9]))"
)
_CURRENCY = r"(?:(?:(?:US|HK|A|C|NT)?[$€£¥₹₩₽￥]|RMB|USD|EUR)[ ]?)"
_SIGN = r"(?:(?<![\w)\]}%])[-+]|(?:minus|negative|moins|menos|минус)[ ]|负|負)?"
_POWER = r"(?:[ ]?[×x*·][ ]?10\^\(?|[eE])(?P<power>[-+]?[0-9]{1,4})\)?(?![0-9])"
# 千 and 百 that begin a unit do not multiply: 2千克 is 2 kg, 5百分点 is 5 points.
_CHINESE_UNIT = r"(?:千(?![克米瓦卡赫帕焦伏字])|[佰仟]|百(?!分)|[万亿萬億]|兆(?![赫瓦字])|打(?!折))"
_CHINESE_SCALE = (
    rf"[ ]?(?P<han>{_CHINESE_UNIT}(?:{_CHINESE_UNIT}|[零〇十拾]|[0-9]+(?:\.[0-9]+)?"
    rf"|[{DIGIT_CHARS}](?=[{UNIT_CHARS}])|(?<=[零〇十拾])[{DIGIT_CHARS}])*)"
)
# $5m is five million, 5m five metres.
_SCALE = (
    rf"[ ]?(?P<scale>(?:{_SCALE_WORDS})(?:[ ](?:{_SCALE_WORDS})){{0,3}})\b"
    r"|(?P<letter>(?-i:[kKM]))(?![A-Za-z])|(?(currency)[ ]?(?P<money>[mbt])(?![A-Za-z])|(?!))"
)
_HALF = r"(?:[ ]and[ ](?P<part>an?[ ]half|one[ ]half|an?[ ]quarter|three[ ]quarters|an?[ ]third))"
NUMBER = (
    rf"(?<![A-Za-z_\\0-9])(?<![A-Za-z]-)(?<![0-9][.,])(?P<sign>{_SIGN})(?P<currency>{_CURRENCY})?"
    rf"(?P<sign2>{_SIGN})"
    r"(?:(?P<bottom3>[0-9]+)分之(?P<top3>[0-9]+)"
    rf"|10\^\(?(?P<ten>[-+]?[0-9]{{1,4}})\)?(?![0-9.])"
    r"|(?:(?P<whole>[0-9]+)(?:[ ]{1,3}|[ ](?:and|&)[ ]|[ ]?又[ ]?)"
    r"(?P<top1>[0-9]+)/(?P<bottom1>[0-9]+)(?![0-9.])"
    rf"|(?P<top2>{_DIGITS})[ ]?/[ ]?(?P<bottom2>{_DIGITS})"
    rf"|(?P<plain>{_DIGITS}))"
    rf"(?:{_POWER}|{_CHINESE_SCALE}|{_HALF}?(?:{_SCALE})?)"
    r")(?P<unit>[ ]?(?:[%‰‱]|[€₽](?![0-9])))?"
)
"""Pattern of a number in digits, all that touches it included."""
_NUMBER = re.compile(NUMBER, re.IGNORECASE)
CHINESE = (
    rf"[负負]?[0-9{DIGIT_CHARS}{UNIT_CHARS}]+(?:又[0-9{DIGIT_CHARS}{UNIT_CHARS}]+)?"
    rf"(?:分之[0-9{DIGIT_CHARS}{UNIT_CHARS}]+)?(?:[点點][{DIGIT_CHARS}]+[万亿萬億]?)?(?:打(?!折))?|一半|半打"
)
"""Pattern of a run that may be a Chinese numeral; `parse_chinese` decides."""
_ENGLISH_FORM = re.compile(
    r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+"
    r"|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}"  # 12,34,567
    r"|[0-9]{1,3}(?:'[0-9]{3})+|[0-9]{1,3}(?:_[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+"
    r"|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
)
_GERMAN_FORM = re.compile(
    r"[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}(?:,[0-9]+)?|[1-9][0-9]{0,2}(?:[. '][0-9]{3})+,[0-9]+"
    r"|0,[0-9]+"
)
_COMMA_DECIMAL = re.compile(r"[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})")


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


def parse_number(text: str) -> Fraction | None:
    """The value of `text` if it is a number and nothing else, in digits or words."""
    text = text.strip()
    match = _NUMBER.fullmatch(text)
    if match:
        return value_of(match)
    value = parse_chinese(text.replace(" ", ""))
    if value is not None:
        return value
    if text.startswith("百分之") or len(text) > MAX_DIGITS:
        return None
    return parse_english(text)


def value_of(match: re.Match[str]) -> Fraction | None:
    """What a match of NUMBER is worth; None if its form is not known."""
    if len(match[0]) > MAX_DIGITS:
        return None
    value = _unscaled(match)
    scale = _scale(match)
    if value is None or scale is None:
        return None
    value *= scale
    value /= {"‰": 1000, "‱": 10_000}.get((match["unit"] or "").strip(), 1)
    negative = (match["sign"] not in ("", "+")) != (match["sign2"] not in ("", "+"))
    return -value if negative else value


def _unscaled(match: re.Match[str]) -> Fraction | None:
    if match["whole"]:
        top, bottom = int(match["top1"]), int(match["bottom1"])
        # "5 10/2" is not a mixed number.
        return int(match["whole"]) + Fraction(top, bottom) if 0 < top < bottom else None
    if match["top3"]:
        below = int(match["bottom3"])
        return Fraction(int(match["top3"]), below) if below else None
    if match["top2"]:
        top_value, bottom_value = _plain(match["top2"]), _plain(match["bottom2"])
        return top_value / bottom_value if bottom_value and top_value is not None else None
    if match["ten"]:
        return _power_of_ten(match["ten"])
    if match["han"]:
        return parse_chinese(re.sub("[,' _]", "", match["plain"] or "") + match["han"])
    value = _plain(match["plain"], comma_decimal=bool(match["unit"] or match["currency"]))
    if value is None or not match["part"]:
        return value
    part = parse_english(match["part"])
    return value + part if part is not None and value.denominator == 1 else None


def _plain(text: str, *, comma_decimal: bool = False) -> Fraction | None:
    """The value of digits with separators; None if they fit no way of writing a number."""
    before, repeats, again = text.rstrip(")").partition("(")
    if repeats:
        places = len(before.partition(".")[2])
        return Fraction(before) + Fraction(int(again), 10**places * (10 ** len(again) - 1))
    if _ENGLISH_FORM.fullmatch(text):
        return Fraction(re.sub("[,' _]", "", text))
    if _GERMAN_FORM.fullmatch(text) or (comma_decimal and _COMMA_DECIMAL.fullmatch(text)):
        return Fraction(re.sub("[.' ]", "", text).replace(",", "."))
    return None


def _scale(match: re.Match[str]) -> Fraction | None:
    if match["power"]:
        return _power_of_ten(match["power"])
    if match["scale"]:
        scale = Fraction(1)
        for word in match["scale"].casefold().split():
            scale *= _SCALES[word]
        return scale
    letter = match["letter"] or match["money"]
    if not letter:
        return Fraction(1)
    return Fraction(_SCALES[letter.casefold()])


def _power_of_ten(power: str) -> Fraction | None:
    return Fraction(10) ** int(power) if abs(int(power)) <= MAX_DIGITS else None
