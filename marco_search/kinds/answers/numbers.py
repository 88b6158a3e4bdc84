"""Numbers in text, read exactly: what they are worth.

Rules. A numeral is taken whole or not at all: what touches its digits belongs to it, and if
the whole is not a known form of number it has no value (1,2,3 or 1.2.3). A unit or a
currency says nothing about which number it is: "$5", "5 dollars" and "5" are one number. The
percent sign is such a unit: "25%" and "25 percent" are 25, which is not 0.25 and not 1/4. Per
mille is a ratio (5‰ is 1/200). No rounding: 0.33 is not 1/3.

The decimal sign is a point and a comma separates thousands, unless the numeral itself shows
the other use: 1.234.567, 1.234,5, 1 234,5, 0,188 and 1,57% are read as in German. "3,5" says
neither and has no value.

Numerals in words are Chinese (三百二十一, 两万, 一点五, 3.5万, 1千零1, 三分之二, 二〇二四) or
English (twenty-one, three hundred and five, two and a half million).

All functions want text that went through `normalize_unicode` and `strip_latex`.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from marco_search.kinds.answers import WORDS, alternatives, worths

MAX_DIGITS = 100
"""Longer digit runs are not numbers anybody gives as an answer, and cost time."""
DIGIT_CHARS = "零〇一二三四五六七八九两兩壹贰貳叁參肆伍陆陸柒捌玖"
UNIT_CHARS = "十百千万亿兆拾佰仟萬億廿卅"

_SMALL = worths(WORDS["ones"] | WORDS["tens"])
_MULTIPLIERS = worths(WORDS["multipliers"])
_DENOMINATORS = worths(WORDS["denominators"])
_SCALE_LETTERS = worths(WORDS["scale_letters"])
_SCALES = worths(WORDS["scales"])
_SCALES |= {word: 1 / n for word, n in _DENOMINATORS.items() if word.endswith("ths")}
_SCALE_WORDS = alternatives(_SCALES)

_DIGITS = (
    r"(?:[0-9]{1,3}(?:[ ][0-9]{3}){1,32}(?:[.,][0-9]+)?(?![.,'_]?[0-9])"
    r"|[0-9]+\.[0-9]+\.{3}"  # 0.333...
    r"|[0-9]{1,9}\.[0-9]{0,9}\([0-9]{1,9}\)"  # 0.(3)
    r"|[0-9]+(?:[.,'_][0-9]+)*|\.[0-9]+(?![.,]?[0-9]))"
)
_CURRENCY = r"(?:(?:(?:US|HK|A|C|NT)?[$€£¥₹₩₽￥]|RMB|USD|EUR)[ ]?)"
_SIGN = (
    rf"(?:(?:(?<![\w)\]}}%])|(?<=[{WORDS['chinese']['before_a_sign']}]))[-+]"
    r"|(?:minus|negative|moins|menos|минус)[ ]|负|負)?"
)
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
    r"(?:(?:(?P<whole3>[0-9]+)[ ]?又[ ]?)?(?P<bottom3>[0-9]+)分之(?P<top3>[0-9]+)"
    rf"|10\^\(?(?P<ten>[-+]?[0-9]{{1,4}})\)?(?![0-9.])"
    r"|(?:(?P<whole>[0-9]+)(?:[ ]{1,3}|[ ](?:and|&)[ ]|[ ]?又[ ]?)"
    r"(?P<top1>[0-9]+)/(?P<bottom1>[0-9]+)(?!\.?[0-9])"
    # 2^10/5 is not 2^2, nor √10/5 √2.
    rf"|(?<![√^])(?<!\^[-+])(?P<top2>{_DIGITS})[ ]?/[ ]?(?P<bottom2>{_DIGITS})"
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
    places = next((n for n in range(31) if 10**n % value.denominator == 0), None)
    if not places:
        return str(value)
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
    if whole := match["whole"] or match["whole3"]:
        top, bottom = int(match["top1"] or match["top3"]), int(match["bottom1"] or match["bottom3"])
        # "5 10/2" is not a mixed number.
        return int(whole) + Fraction(top, bottom) if 0 < top < bottom else None
    over, under = match["top2"] or match["top3"], match["bottom2"] or match["bottom3"]
    if over:
        above, below = _plain(over), _plain(under)
        return above / below if below and above is not None else None
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
        words = match["scale"].casefold().split()
        return math.prod((_SCALES[word] for word in words), start=Fraction(1))
    letter = match["letter"] or match["money"]
    return _SCALE_LETTERS[letter.casefold()] if letter else Fraction(1)


def _power_of_ten(power: str) -> Fraction | None:
    return Fraction(10) ** int(power) if abs(int(power)) <= MAX_DIGITS else None


_SPELLINGS = str.maketrans(
    "〇兩两壹贰貳叁參肆伍陆陸柒捌玖拾佰仟萬億點負又",
    "零二二一二二三三四五六六七八九十百千万亿点负又",
) | str.maketrans({"廿": "二十", "卅": "三十"})
_HAN_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")}
_HAN_UNITS = {"兆": 10**12, "亿": 10**8, "万": 10**4, "千": 1000, "百": 100, "十": 10}
_HAN_NUMERAL = re.compile(
    r"(?P<sign>负?)(?:(?:(?P<whole>.+)又)?(?P<bottom>.+?)分之)?(?P<top>[^点]+?)"
    r"(?:点(?P<decimals>[零一二三四五六七八九]+)(?P<scale>[兆亿万]?))?(?P<dozens>打?)"
)
_ASCII_NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
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
    match = _HAN_NUMERAL.fullmatch(text.translate(_SPELLINGS))
    value = _chinese_value(match) if match else None
    if match is None or value is None:
        return None
    return value * (12 if match["dozens"] else 1) * (-1 if match["sign"] else 1)


def _chinese_value(match: re.Match[str]) -> Fraction | None:
    """Of the numeral without its sign and dozens."""
    whole, bottom, top, decimals = match.group("whole", "bottom", "top", "decimals")
    if bottom is None and top in ("半", "一半"):
        return Fraction(1, 2)
    # A lone unit stands for itself in a fraction: 千分之一, 百分之百.
    value = _chinese_integer(f"一{top}" if bottom and top == "百" else top)
    if value is None:
        return None
    if decimals:
        value += Fraction(_spelled(decimals), 10 ** len(decimals))
        value *= _HAN_UNITS.get(match["scale"], 1)  # 一点五万
    if bottom is None:
        return value
    below = _chinese_integer(f"一{bottom}" if bottom in _HAN_UNITS else bottom)
    before = _chinese_integer(whole) if whole else Fraction(0)
    if not below or before is None:
        return None
    return before + (value if bottom == "百" else value / below)


def _chinese_integer(text: str) -> Fraction | None:
    if text and all(char in _HAN_DIGITS for char in text):
        unclear = len(text) == 2 and "零" not in text  # 五六个: five or six
        return None if unclear else Fraction(_spelled(text))
    text = text.removeprefix("零")
    if _ASCII_NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    unit = next((char for char in _HAN_UNITS if char in text), None)
    if unit is None:
        return None
    left, _, right = text.rpartition(unit)
    worth = _HAN_UNITS[unit]
    if worth < 10**4 and left not in _HAN_DIGITS and not left.isascii():
        return None
    count = _chinese_integer("一" if unit == "十" and not left else left)
    rest = _chinese_rest(right, worth)
    if count is None or rest is None or (count == 0 and worth >= 10**4):
        return None
    return count * worth + rest if rest < worth else None


def _chinese_rest(text: str, unit: int) -> Fraction | None:
    """What follows a unit."""
    if text in ("", "零"):
        return Fraction(0)
    if text.isdecimal() and len(text) > 1 and 10 ** len(text) != unit:
        return None
    value = _chinese_integer(text.removeprefix("零"))
    short = text in _HAN_DIGITS or (len(text) == 1 and text.isdecimal())  # 一万二, 3万2
    return value * unit / 10 if value and short else value


def _spelled(digits: str) -> int:
    return int("".join(str(_HAN_DIGITS[char]) for char in digits))


_WORD = alternatives([*_SMALL, *_MULTIPLIERS])
_PART = alternatives([*_DENOMINATORS, "first", "second(?!s)"])
NUMBER_WORDS = (
    rf"\b(?:(?:minus|negative)[ ])?"
    rf"(?:(?:{_WORD})\b|(?:an?|half[ ]an?)(?=[ ](?:{alternatives(_MULTIPLIERS)}|{_PART})\b))"
    rf"(?:(?:[ -]+|[ ]and[ ](?:an?[ ](?=(?:{_PART})\b))?)(?:{_WORD}|{_PART}|point)\b)*"
)
"""Pattern of a run of number words in a text; `parse_english` says whether it is one number."""


def parse_english(text: str) -> Fraction | None:
    """The value of number words: whole, negative, a fraction or a decimal; None if not one."""
    words = text.casefold().replace("-", " ").split()
    negative = words[:1] in (["minus"], ["negative"])
    value = _english_value(words[negative:])
    return None if value is None else value * (-1) ** negative


def _english_value(words: list[str]) -> Fraction | None:
    if "point" in words:
        at = words.index("point")
        whole, digits = _english_whole(words[:at]), [_SMALL.get(word) for word in words[at + 1 :]]
        if whole is None or not digits or not all(d is not None and d < 10 for d in digits):
            return None
        return whole + Fraction(int("".join(map(str, digits))), 10 ** len(digits))
    if not any(word in _DENOMINATORS for word in words):
        return _english_whole(words)
    if words[-1] != "hundred" and words[-1] in _MULTIPLIERS:
        # two and a half million, half a million
        value = _english_value(words[:-2] if words[:-1] == ["half", "a"] else words[:-1])
        return None if value is None else value * _MULTIPLIERS[words[-1]]
    if "and" not in words:
        return _english_fraction(words)
    at = len(words) - 1 - words[::-1].index("and")  # two and three quarters
    before, part = _english_whole(words[:at]), _english_fraction(words[at + 1 :])
    return before + part if before is not None and part is not None and part < 1 else None


def _english_fraction(words: list[str]) -> Fraction | None:
    """three quarters, a third, half."""
    bottom = _DENOMINATORS.get(words[-1]) if words else None
    if bottom is None:
        return None
    if words[:-1] in ([], ["a"]):
        return 1 / bottom if len(words) > 1 or bottom == 2 else None
    top = _english_whole(words[:-1])
    ordinal = words[-1][-1] != "s" and words[-1] not in ("half", "quarter") and top != 1
    return None if top is None or ordinal else top / bottom  # twenty-third is not 20/3


def _english_whole(words: list[str]) -> Fraction | None:
    if words[:1] in (["a"], ["an"]) and len(words) > 1:
        words = ["one", *words[1:]]
    for unit, worth in _MULTIPLIERS.items():
        if unit in words:
            at = words.index(unit)
            count, rest = _english_whole(words[:at]), words[at + 1 :]
            added = _english_whole(rest[rest[0] == "and" :]) if rest else Fraction(0)
            if not count or added is None or (rest and not added):
                return None
            fits = count < (100 if unit == "hundred" else 10**4) and added < worth
            return count * worth + added if fits else None
    match [_SMALL.get(word) for word in words]:
        case [Fraction() as value]:
            return value
        case [Fraction() as tens, Fraction() as ones] if tens >= 20 and 0 < ones < 10:
            return tens + ones
    return None
