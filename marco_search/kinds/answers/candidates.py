"""Which of the terms in a text is meant as its answer.

Not meant are operands ("8 lessons * 3"), labels ("Step 2", list numbers), bounds ("more than
5") and what stands in a clause that only gives the reason or the purpose. Of those left, the
result of the last equation in a sentence is taken, else its last term.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from marco_search.kinds.answers.terms import Term, terms

_LABEL = re.compile(
    r"(?:\b(?:step|question|problem|part|case|figure|table|equation|eq\.|chapter|section|page"
    r"|method|example|option|no\.)\s*|#|第|步骤\s*|方法\s*|星期|周|礼拜)$",
    re.IGNORECASE,
)
_LIST_ITEM = re.compile(r"^\s*\d{1,2}[.)、](?=\s*\S)(?!\d)", re.MULTILINE)
_OPERATOR_BEFORE = re.compile(r"(?:(?:[*/^×÷+√·±]|乘以?|除以)\s*\(?\s*|[\w)\]}%]\s*-\s*)$")
_OPERATOR_AFTER = re.compile(
    r"\s?[a-z]{1,6}\s?(?:x|×|by)\s?[0-9]|[\u4e00-\u9fff]{0,2}\s*(?:乘|除以|[*^×÷·±]|\+|/\s*[\d(]|-\s*[\d($]|=.*\d)"
)
_BOUND_BEFORE = re.compile(
    r"(?:\b(?:more|less|greater|fewer|larger|smaller|bigger|higher|lower) than(?: or equal to)?"
    r"|\bbetween|\bpast|\bquarter to|公元前|又|[一二三四五六七八九]成|[上下]午|[早晚]上"
    r"|凌晨|傍晚|中午|[点點]差|\|(?! )|[⌊⌈]"
    r"|\b(?:base|mod|out of|twice|double|triple|(?:half|thirds?|quarters?|fifths?|tenths?) of"
    r"|one (?:in|of)(?: every| the)?|give or take)"
    r"|[<>≤≥≠]|大于|大於|小于|小於|超过|超過|不到|不足|多于|多於|少于|少於|高于|低于"
    r"|不等于|介于|介於)\s*(?:[$€£¥]\s*)?$",
    re.IGNORECASE,
)
_BOUND_AFTER = re.compile(
    r"\s?[\u4e00-\u9fff]?(?:以上|以下|以内|以外)|[多余餘来來几幾](?![少于於])|半|\s?[成折](?![\u4e00-\u9fff])"
    r"|的?(?:平方|立方|[二两三四五六七八九十]{0,3}次[方幂])(?![米厘分公千毫])|(?![kcdm]?m[23]\b)[A-Za-z]{0,3}_?[0-9]|[abxyz]{2,4}\b|[|⌋⌉]|\s?\(?(?:base|mod)\b|\sB\.?C\b"
    r"|\s(?:(?:raised )?to the \w+(?: power|th)|squared|cubed|quarters? of|half|third|give or take"
    r"|(?:more|less|fewer) than(?= [0-9]))\b"
    r"|\s(?:\S+\s)?(?:or|and) (?:more|less|fewer|greater|higher|lower|above|below|up)\b"
    r"|\s(?:\S+\s)?at (?:least|most)\b",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"\b(?:because|since|before|after|given|when|while|whereas|than|per|out of|based on|so that"
    r"|in order to|to (?:achieve|ensure|get|reach|make|have|obtain|satisfy)|which|where|if)\b"
    r"|\b(?:in|within|over|every|during)\b(?=\s+\S+\s+(?:second|minute|hour|day|week|month|year)s?\b)"
    r"|因为|由于|(?<=[,，])因|以便|才能|其中",
    re.IGNORECASE,
)
# What a later statement of the sentence begins with.
_SO = re.compile(r"[,;]?\s*\b(?:so|thus|therefore|hence|then|or)\b|所以|因此|那么|也就是", re.I)
_SENTENCE_END = re.compile(r"[。!?;\n]+|\.(?=\s|$)")
_BRACKETS = re.compile(r"\([^()]*\)")
_MAX_SPELLED_CHARS = 240
"""Longer texts without digits are explanations: "the two variables" is no answer."""


def candidates(text: str) -> list[Term]:
    """The terms of a text; numbers in words count where there are no digits."""
    return terms(text, spelled=not re.search("[0-9]", text) and len(text) <= _MAX_SPELLED_CHARS)


def last_meant(text: str, found: Sequence[Term]) -> Term | None:
    """The term that is meant in the last sentence that has any that may be."""
    labels = [m.span() for m in _LIST_ITEM.finditer(text)]
    labels = labels if len(labels) > 1 else []  # one "12." is an answer, not a list
    free = [t for t in found if is_free(text, t) and not _touches(t, labels)]
    bounds = [0, *(m.end() for m in _SENTENCE_END.finditer(text)), len(text)]
    for start, end in reversed(list(pairwise(bounds))):
        inside = [t for t in free if start <= t.start < end]
        # A pair brings its own brackets: only what is within counts as bracketed.
        bracketed = [(m.start() + 1, m.end() - 1) for m in _BRACKETS.finditer(text, start, end)]
        outside = [t for t in inside if text[t.start] in "([" or not _touches(t, bracketed)]
        inside = outside or inside
        if inside:
            return _of_sentence(text, inside)
    return None


def is_free(text: str, term: Term) -> bool:
    """Whether a term stands for itself: no operand, label or bound."""
    before = text[max(0, term.start - 32) : term.start]
    return not (
        _LABEL.search(before)
        or _OPERATOR_BEFORE.search(before)
        or _BOUND_BEFORE.search(before)
        or _OPERATOR_AFTER.match(text, term.end)
        or _BOUND_AFTER.match(text, term.end)
    )


def _of_sentence(text: str, inside: Sequence[Term]) -> Term:
    results = [t for t in inside if t.result or text[: t.start].rstrip().endswith("=")]
    if not results:
        return _main_clause(text, inside)[-1]
    so = _SO.search(text, results[-1].end)
    later = [t for t in inside if so and t.start >= so.end()]
    return _main_clause(text, later)[-1] if later else results[-1]


def _main_clause(text: str, inside: Sequence[Term]) -> Sequence[Term]:
    # Cut at the first aside that has a number before it.
    aside = _ASIDE.search(text, inside[0].end)
    return [t for t in inside if aside is None or t.end <= aside.start()]


def _touches(term: Term, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether a term overlaps one of `spans`, which are sorted and disjoint."""
    at = bisect_right(spans, term.start, key=lambda span: span[0])
    before = at > 0 and spans[at - 1][1] > term.start
    return before or (at < len(spans) and spans[at][0] < term.end)
