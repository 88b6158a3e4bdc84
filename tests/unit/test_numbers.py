"""Numbers are read exactly, however they are written."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marco_search.kinds.answers.normalization import normalize_unicode, strip_latex, text_key
from marco_search.kinds.answers.numbers import (
    number_key,
    parse_chinese,
    parse_english,
    parse_number,
)
from marco_search.kinds.answers.terms import terms


def value(text: str) -> Fraction | None:
    return parse_number(strip_latex(normalize_unicode(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # separators
        ("1234", 1234), ("1,234", 1234), ("1 234", 1234), ("1'234", 1234), ("1’234", 1234),
        ("1_234", 1234), ("1\u00a0234\u202f567", 1234567), ("1,234,567.50", "1234567.5"),
        ("12,34,567", 1234567), ("1{,}234", 1234), (r"1\,234", 1234),
        # decimals and signs
        ("3.14", "3.14"), (".5", "0.5"), ("18.0", 18), ("18.00", 18), ("007", 7),
        ("-5", -5), ("−5", -5), ("－５", -5), ("–5", -5), ("+5", 5), ("minus 5", -5), ("负5", -5),
        # currency and percent are units
        ("$1,620", 1620), ("-$5", -5), ("$-5", -5), ("US$5", 5), ("€ 5", 5), ("￥5", 5),
        ("25%", 25), ("25 %", 25), ("２５％", 25), (r"25\%", 25), ("0.5%", "0.5"),
        ("5‰", "1/200"),
        # fractions
        ("3/4", "3/4"), ("3 / 4", "3/4"), ("6/8", "3/4"), ("½", "1/2"), ("1½", "3/2"),
        ("1 1/2", "3/2"), ("2⅓", "7/3"), ("3⁄4", "3/4"), (r"\frac{3}{4}", "3/4"),
        (r"\dfrac34", "3/4"), (r"-\frac{3}{4}", "-3/4"), (r"1\frac{1}{2}", "3/2"),
        # powers of ten and scales
        ("1.2e5", 120000), ("1.2E-3", "0.0012"), ("1.2 × 10^5", 120000), ("1.2×10⁻³", "0.0012"),
        (r"1.2\times 10^{5}", 120000), ("10⁵", 100000), ("5 million", 5_000_000),
        ("2.5 thousand", 2500), ("5k", 5000),
        # full width and other scripts
        ("１，２３４．５", "1234.5"), ("٣", 3),
        # Chinese
        ("三百二十一", 321), ("两万", 20000), ("一点五", "1.5"), ("百分之二十五", 25),
        ("百分之25", 25),
        ("百分之百", 100), ("三分之二", "2/3"), ("3分之2", "2/3"), ("五又二分之一", "11/2"),
        ("千分之五", "1/200"), ("3.5万", 35000), ("１．５亿", 150_000_000), ("3万5千", 35000),
        ("1亿2000万", 120_000_000), ("12,000万", 120_000_000), ("三万亿", 3 * 10**12),
        ("十", 10), ("十五", 15), ("二十", 20), ("一百一十", 110), ("一千零五", 1005),
        ("一万零五", 10005), ("两千零二十", 2020), ("一万万", 10**8), ("二〇二四", 2024),
        ("贰仟伍佰", 2500), ("負三", -3), ("零", 0), ("零点五", "0.5"), ("一点五万", 15000),
        ("两百五", 250), ("三千六", 3600), ("一万二", 12000), ("两百零五", 205), ("一半", "1/2"),
        # English words
        ("twenty-one", 21), ("Two Hundred and five", 205), ("a hundred", 100), ("zero", 0),
        ("three thousand four hundred", 3400), ("five hundred thousand", 500_000),
        ("minus ten", -10), ("one million two thousand and three", 1_002_003),
    ],
)  # fmt: skip
def test_is_worth(text: str, expected: int | str) -> None:
    assert value(text) == Fraction(expected)


@pytest.mark.parametrize(
    "text",
    [
        "", "abc", "1,2,3", "1/0", "0/0", "5 10/2", "1e9999", "9" * 5000, "2千克", "3千米", "1.2.3",
        "5 km", "x2", "一百百", "百", "万", "点五", "三点", "负负三", "零分之一", "一二十", "十百",
        "one two", "twenty eleven", "hundred", "thousand", "and five", "two thousand hundred", "-",
        "minus", "minus minus five", "2π", "10^9999",
    ],
)  # fmt: skip
def test_is_no_number(text: str) -> None:
    assert value(text) is None


def test_percent_is_no_ratio() -> None:
    assert value("25%") == value("25") != value("0.25")


def test_units_do_not_multiply() -> None:
    quantities = ("2千克", "3千米", "5百分点", "5 km", "2 million")
    found = [term.key for text in quantities for term in terms(text)]
    assert found == ["2", "3", "5", "5", "2000000"]


def test_letters_with_digits_are_names() -> None:
    assert terms(strip_latex(normalize_unicode("x2, m2, COVID-19, H₂O, T5"))) == []


@pytest.mark.parametrize(
    ("number", "key"),
    [("42", "42"), ("-0.75", "-0.75"), ("1/3", "1/3"), ("-7/6", "-7/6"), ("1.50", "1.5"),
     ("0.005", "0.005"), ("1/1024", "0.0009765625"), ("100", "100"), ("0", "0")],
)  # fmt: skip
def test_key(number: str, key: str) -> None:
    assert number_key(Fraction(number)) == key


@given(st.fractions(max_denominator=10**6))
def test_key_reads_back(number: Fraction) -> None:
    assert Fraction(number_key(number)) == number
    assert value(number_key(number)) == number


@given(st.integers(0, 10**18), st.sampled_from([",", " ", "'", "_", "\u00a0", "’", "，"]))
def test_separators_read_back(number: int, separator: str) -> None:
    assert value(f"{number:,}".replace(",", separator)) == number


@given(st.decimals(-(10**9), 10**9, places=4))
def test_full_width_reads_back(number: object) -> None:
    wide = f"{number:,}".translate(str.maketrans("0123456789,.-", "０１２３４５６７８９，．－"))
    assert value(wide) == Fraction(str(number))


@given(st.integers(-(10**16) + 1, 10**16 - 1))
def test_chinese_reads_back(number: int) -> None:
    assert parse_chinese(in_chinese(number)) == number


@given(st.integers(0, 10**8), st.text("0123456789", min_size=1, max_size=6))
def test_chinese_decimals_read_back(whole: int, digits: str) -> None:
    spelled = "".join("零一二三四五六七八九"[int(d)] for d in digits)
    assert parse_chinese(f"{in_chinese(whole)}点{spelled}") == Fraction(f"{whole}.{digits}")


@given(st.integers(0, 10**5), st.integers(1, 10**5))
def test_chinese_fractions_read_back(top: int, bottom: int) -> None:
    text = f"{in_chinese(bottom)}分之{in_chinese(top)}"
    expected = top if bottom == 100 and text.startswith("百") else Fraction(top, bottom)
    assert parse_chinese(text) == expected


@given(st.integers(-(10**12), 10**12))
def test_english_reads_back(number: int) -> None:
    assert parse_english(in_english(number)) == number


@given(st.text(max_size=40))
def test_any_text_can_be_read(text: str) -> None:
    folded = strip_latex(normalize_unicode(text))
    parse_number(folded)
    terms(folded)
    assert "\x00" not in text_key(text)


@given(st.text("0123456789.,/-+%e^ $千万亿百十三分之点负k×", max_size=20))
def test_any_number_like_text_can_be_read(text: str) -> None:
    parse_number(text)
    terms(text)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("The  Cat.", "cat"), ("“Hello”, world!", "hello , world"), ("Ｈｅｌｌｏ", "hello"),
        (r"\(x = \sqrt{2}\)", "x=√(2)"), (r"$\frac{n(n-3)}{2}$", "(n(n-3))/(2)"),
        ("你好，世界。", "你好, 世界"), ("cliché", "cliche\u0301"),
        (r"(-\infty, 3) \cup (3, \infty)", "(-∞,3)∪(3,∞)"),
    ],
)  # fmt: skip
def test_texts_that_count_as_the_same(a: str, b: str) -> None:
    assert text_key(a) == text_key(b) != ""


def test_money_is_not_maths() -> None:
    assert strip_latex("$5 and $6") == "$5 and $6"
    assert strip_latex("$x$ and $y$") == "x and y"


# -- encoders ---------------------------------------------------------------------------


def in_chinese(number: int) -> str:
    """The standard spelling of a whole number below 10**16."""
    if number < 0:
        return "负" + in_chinese(-number)
    if number == 0:
        return "零"
    high, low = divmod(number, 10**8)
    if high:
        gap = "零" if 0 < low < 10**7 else ""
        return in_chinese(high) + "亿" + (gap + in_chinese(low) if low else "")
    high, low = divmod(number, 10**4)
    if high:
        gap = "零" if 0 < low < 1000 else ""
        return _below_ten_thousand(high) + "万" + (gap + _below_ten_thousand(low) if low else "")
    return _below_ten_thousand(number)


def _below_ten_thousand(number: int) -> str:
    out, gap = "", False
    for unit, char in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, number = divmod(number, unit)
        if digit:
            out += ("零" if gap else "") + "零一二三四五六七八九"[digit] + char
            gap = False
        else:
            gap = bool(out)
    return out


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety"


def in_english(number: int) -> str:
    if number < 0:
        return "minus " + in_english(-number)
    if number < 20:
        return _SMALL.split()[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return _TENS.split()[tens] + (f"-{in_english(rest)}" if rest else "")
    for unit, word, joint in (
        (10**12, "trillion", " "),
        (10**9, "billion", " "),
        (10**6, "million", " "),
        (1000, "thousand", " "),
        (100, "hundred", " and "),
    ):
        if number >= unit:
            high, rest = divmod(number, unit)
            return f"{in_english(high)} {word}" + (joint + in_english(rest) if rest else "")
    raise AssertionError
