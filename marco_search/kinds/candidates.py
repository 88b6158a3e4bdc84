"""Which of the numbers in a sentence is meant as its answer.

Not meant are operands ("3 + 4 = 7"), labels ("Step 2", list numbers), parts of a pair or an
interval, of a symbolic term ("2π", "3√2") or of a clause that only gives the reason or the
purpose. Of those left, the last one in a sentence is taken.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from marco_search.kinds.chinese_numbers import parse_chinese
from marco_search.kinds.english_numbers import NUMBER_WORDS, parse_english
from marco_search.kinds.numbers import CHINESE, Found, digit_numbers, number_key

_TERM = r"[-+]?[0-9.,/]*[0-9∞π]"
_PAIR = rf"[(\[]\s*{_TERM}(?:\s*,\s*{_TERM}){{1,7}}\s*[)\]]"
_COMPOUND = re.compile(
    rf"{_PAIR}(?:\s*∪\s*{_PAIR}){{0,7}}"  # (2, -1), (-∞, 3) ∪ (3, ∞)
    r"|(?<![\d:.])\d{1,4}(?::\d{1,4}){1,2}(?![\d:])"  # 3:2, 10:30
    r"|(?<!\d)\d{4}-\d{1,2}-\d{1,2}(?!\d)"  # 2024-05-01
)
_GROUPED = re.compile(r"[(\[]\s*[-+]?\d{1,3}(?:,\d{3})+\s*[)\]]")
_LABEL = re.compile(
    r"(?:\b(?:step|question|problem|part|case|figure|table|equation|eq\.|chapter|section|page"
    r"|method|example|option|no\.|#)\s*|第|步骤\s*|方法\s*|星期|周|礼拜)$",
    re.IGNORECASE,
)
_LIST_ITEM = re.compile(r"^\s*\d{1,2}[.)、](?=\s*\S)(?!\d)", re.MULTILINE)
_SYMBOL_AFTER = re.compile(
    r"\s?[π√]|[xyznij](?![A-Za-z])|\s?[xyzn]\^|\((?=[0-9√π-]|[a-z]\b)|!(?=\s*[=/*])"
)
_OPERATOR_BEFORE = re.compile(r"(?:[*/^×÷+√·±]\s*\(?\s*|[\w)\]}%]\s*-\s*)$")
_OPERATOR_AFTER = re.compile(r"\s*(?:[*^×÷+·±]|/\s*[\d(]|-\s*[\d($]|=.*\d)")
_ASIDE = re.compile(
    r"\b(?:because|since|before|after|given|when|while|whereas|than|per|out of|based on|so that"
    r"|in order to|to (?:achieve|ensure|get|reach|make|have|obtain|satisfy)|which|where|if)\b"
    r"|\b(?:in|within|over|every|during)\b(?=\s+\S+\s+(?:second|minute|hour|day|week|month|year)s?\b)"
    r"|因为|由于|(?<=[,，])因|以便|才能|其中",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[。!?;\n]+|\.(?=\s|$)")
_BRACKETS = re.compile(r"\([^()]*\)")
# What a spelled numeral must stand before to be a count rather than a part of a word.
_MEASURE = re.compile(
    r"\s*(?:[个個只隻本张張元块塊美欧人天日小分秒岁歲条條件次颗顆米公千克斤支辆辆棵朵页頁年月周倍"
    r"名位头頭匹箱盒袋瓶杯升毫厘平方立份枚双雙对对套层排行里英尺寸吨度枝根片节节课场場种種道题題"
    r"把台架艘座间間扇桶罐包串组組队隊轮輪首部篇封句顿頓节袋盘碗]|[,.:;!?。、)\]]|$)"
)
_DEMONSTRATIVE = re.compile(r"[这那每哪几某前后上下另各任]$")


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something in text[start:end] that may be the answer. `key` is its normalised form."""

    key: str
    start: int
    end: int
    free: bool  # False: an operand, a label, a symbol's factor


def digit_candidates(text: str) -> list[Candidate]:
    """Numbers in digits, and pairs, ratios and dates as one candidate each, in order."""
    compounds = [m for m in _COMPOUND.finditer(text) if not _GROUPED.fullmatch(m[0])]
    labels = [m.span() for m in _LIST_ITEM.finditer(text)]
    if len(labels) < 2:  # one "12." is an answer, not a list
        labels = []
    taken = [m.span() for m in compounds]
    found = [Candidate("".join(m[0].split()), *m.span(), True) for m in compounds]
    for number in digit_numbers(text):
        if (
            _touches(number.start, number.end, taken)
            or text[number.start - 1 : number.start] == "^"
        ):
            continue  # an exponent, as in cm^2, is part of its unit or term
        free = not _touches(number.start, number.end, labels) and _is_free(text, number)
        found.append(Candidate(number_key(number.value), number.start, number.end, free))
    return sorted(found, key=lambda c: c.start)


def spelled_candidates(text: str) -> list[Candidate]:
    """Numbers in Chinese or English words. A lone 一 or "one" is too often no number at all."""
    found = []
    for match in CHINESE.finditer(text):
        chinese = parse_chinese(match[0])
        before = text[: match.start()]
        if chinese is None or match[0] in ("一", "一半") or _DEMONSTRATIVE.search(before):
            continue
        if _MEASURE.match(text, match.end()) and not _LABEL.search(before):
            found.append(Candidate(number_key(chinese), *match.span(), True))
    for match in NUMBER_WORDS.finditer(text):
        english = parse_english(match[0])
        if english is not None and match[0].casefold() != "one":
            free = not _LABEL.search(text[: match.start()])
            found.append(Candidate(str(english), *match.span(), free))
    return sorted(found, key=lambda c: c.start)


def last_meant(text: str, candidates: list[Candidate]) -> Candidate | None:
    """The last free candidate of the main clause of the last sentence that has any."""
    bounds = [0, *(m.end() for m in _SENTENCE_END.finditer(text)), len(text)]
    for start, end in reversed(list(pairwise(bounds))):
        inside = [c for c in candidates if c.free and start <= c.start < end]
        # A pair brings its own brackets: only what is within counts as bracketed.
        bracketed = [(m.start() + 1, m.end() - 1) for m in _BRACKETS.finditer(text, start, end)]
        outside = [
            c for c in inside if text[c.start] in "([" or not _touches(c.start, c.end, bracketed)
        ]
        inside = outside or inside
        if inside:
            return _main_clause(text, inside)[-1]
    return None


def _main_clause(text: str, candidates: list[Candidate]) -> list[Candidate]:
    # Cut at the first aside that has a number before it.
    aside = _ASIDE.search(text, candidates[0].end)
    return [c for c in candidates if aside is None or c.end <= aside.start()]


def _touches(start: int, end: int, spans: list[tuple[int, int]]) -> bool:
    """Whether start:end overlaps one of `spans`, which are sorted and disjoint."""
    at = bisect_right(spans, start, key=lambda span: span[0])
    before = at > 0 and spans[at - 1][1] > start
    return before or (at < len(spans) and spans[at][0] < end)


def _is_free(text: str, number: Found) -> bool:
    before = text[max(0, number.start - 24) : number.start]
    return not (
        _LABEL.search(before)
        or _OPERATOR_BEFORE.search(before)
        or _SYMBOL_AFTER.match(text, number.end)
        or _OPERATOR_AFTER.match(text, number.end)
    )
