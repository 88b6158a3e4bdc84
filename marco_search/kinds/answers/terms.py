"""The terms of a text: its numerals and whatever they are joined to, each as one whole.

A scanner cuts the text into tokens and a small grammar joins those that belong together. A
number alone is a term with a value. Numbers joined by operators, relations, brackets, "to",
":" or in a list are one term, compared as text that is written in one way:

    run     = item { ("," | "and" | "or" | "to" | ":" | ...) item }
    item    = expr { ("=" | "<" | ...) expr }
    expr    = operand { ("+" | "-" | "*" | "/" | "^" | ...) operand }
    operand = { sign | root } ( number | date | symbol | "(" item { "," item } ")" ) { factor }
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from marco_search.kinds.answers import WORDS, alternatives, worths
from marco_search.kinds.answers.numbers import (
    CHINESE,
    DIGIT_CHARS,
    NUMBER,
    NUMBER_WORDS,
    UNIT_CHARS,
    number_key,
    parse_chinese,
    parse_english,
    value_of,
)

_MONTH = rf"(?:{alternatives(WORDS['dates']['months'].split())})\b\.?"
_DAY = r"[0-9]{1,2}(?:st|nd|rd|th)?(?![0-9.,]*[0-9])"
_DATE = (
    r"(?<![0-9./-])(?:[0-9]{4}(?P<dash>[-/.])[0-9]{1,2}(?P=dash)[0-9]{1,2}"
    r"(?:T[0-9:.]+Z?)?"
    r"|[0-9]{1,2}/[0-9]{1,2}/[0-9]{2,4})(?![./-]?[0-9])"
    rf"|\b{_MONTH} {_DAY}(?![A-Za-z])(?:,? [0-9]{{4}}\b)?"
    rf"|\b{_DAY}(?:\.|er)? (?:of |de )?{_MONTH}(?:,?(?: de)? [0-9]{{4}}\b)?|\b{_MONTH} [0-9]{{4}}\b"
)
_HOUR = rf"(?:[0-9]{{1,2}}|[{DIGIT_CHARS}十]{{1,3}})"
_CLOCK = (
    r"(?<![0-9:.])(?:[0-9]{1,2}(?:[:.][0-9]{2}){0,2} ?(?P<half>[AaPp])\.?[Mm]\b\.?"
    r"|[0-9]{1,2}:(?:0[0-9]|[0-9]{2}(?=:[0-9]{2}))(?::[0-9]{2})?(?![0-9:]))"
    rf"|(?P<hour>{_HOUR})[点點时時](?P<minute>半|[一三]刻|{_HOUR}分(?!之)|[0-9]{{2}}(?![0-9]))"
)
_OPERATOR = (
    r"[-+*/×÷·^±∪∩@]|\b(?:(?:out )?of|over|in)(?: every| the)?(?= (?:[0-9]+(?![0-9,.]*[0-9])"
    r"|(?:two|three|four|five|six|seven|eight|nine|ten)\b))"
    r"(?!(?<!of)(?<!of the) \w+ (?:second|minute|hour|day|night|week|month|year)s?\b)"
    r"|\bper(?= [0-9]+\W*(?:\n|$))"
    r"|[个個人名]中[的有]?"
    r"|\b(?:raised )?to the (?:power(?: of)?|(?=[0-9]+(?:th|rd|nd)))"
    r"|的(?=[0-9二两兩三四五六七八九十]+次方)"
    r"|(?<=[0-9] )x(?= [$]?[0-9])|\b(?:plus|minus|times|divided by)\b"
    r"|加上?|[减減]去?|乘以?|除以|[余餘](?=[0-9])|\.{3,6}"
)
_SEPARATOR = r"[,;]?(?: ?(?:\b(?:and|or)\b|&)|[和或与與及跟])|[、,;]"
_REST = (
    r"|(?P<root>\b(?:gcd|lcm|max|min|det|exp|arc(?:sin|cos|tan))(?=\()"
    r"|(?<![A-Za-z])(?:sqrt|log(?: ?_[0-9]+)?|ln|lg|sin|cos|tan|(?:square|cube) root of)\b"
    r"|倍?根[号號]|[√∛](?:\[[0-9]\])?)|(?P<symbol>[π∞θ]|(?<![A-Za-z])pi(?![A-Za-z]))"
    rf"|(?P<op>{_OPERATOR})|(?P<range>~|\bto\b|[到至])|(?P<ratio>[:比])"
    r"|(?P<rel><=|>=|[=<>≤≥≠≈∈])"
    rf"|(?P<sep>{_SEPARATOR})"
    r"|(?P<var>(?<![A-Za-z])[A-Za-z](?:_?[0-9]+)?(?![A-Za-z0-9']))"
    r"|(?P<open>[(\[{⟨])|(?P<close>[)\]}⟩])|(?P<word>[A-Za-z']+)|(?P<other>[^ ])"
)
_NUMERIC = rf"(?P<date>{_DATE})|(?P<clock>{_CLOCK})|(?P<number>(?i:{NUMBER}))"
_TOKEN = re.compile(_NUMERIC + _REST)
_SPELLED_TOKEN = re.compile(
    rf"{_NUMERIC}|(?P<chinese>{CHINESE}|半)|(?P<english>(?i:{NUMBER_WORDS})){_REST}"
)
_HAN = r"[\u4e00-\u9fff]"
_NO_UNIT = WORDS["chinese"]["particles"] + DIGIT_CHARS + UNIT_CHARS
# What a spelled Chinese numeral must stand before to be a count rather than a part of a word.
_MEASURE = re.compile(
    rf"\s*(?:[{''.join(WORDS['chinese']['measures'].split())}]"
    r"|角(?![形度边邊落])|毛(?![巾衣线線病笔筆])|[,.:;!?。、)\]]|$)"
)
_DEMONSTRATIVES = frozenset(WORDS["chinese"]["demonstratives"])
_AND_HALF = re.compile(
    rf" ?(?![{_NO_UNIT}]){_HAN}{{1,2}}(?<![{_NO_UNIT}])半(?![径徑圆圓球路数數价價])"
)
_SHORT_REST = re.compile(rf"[元块塊米][{DIGIT_CHARS}](?:[毛角]|(?!{_HAN}))")  # 一米八, 一块二毛
_UNITS = [worths(family) for family in WORDS["units"]]
_HAN_UNIT = alternatives(unit for family in _UNITS for unit in family if not unit.isascii())
_UNIT = rf" ?(?:(?P<word>[A-Za-z]+?)s?(?![A-Za-z])|(?P<han>{_HAN_UNIT}))"
UNIT_WORD = re.compile(_UNIT)
_NEXT_UNIT = re.compile(_UNIT + r"(?:\.?,?(?: and)? ?|[零又])")
_TOUCHING_UNIT = re.compile(
    r"(?:[°'][NSEWnsew]?,? ?|[平立]方(?:分米|厘米|米)"
    rf"|小时|分钟|千米|厘米|千克|公斤|(?![{_NO_UNIT}]){_HAN})"
)
_PAIR = re.compile(r"[-+]?(?:0|[0-9]+\.[0-9]{3}),[0-9]+")
_LIKE_A_NUMBER = re.compile(
    r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|(?<=[^0-9.,]0),(?=[0-9]+(?![0-9]*[,)\]}⟩]))"
)
_FACTORS = frozenset("xyznijabB")  # 7B may be billions or a variable: no plain 7
_COUNTED = ("number", "date", "clock", "symbol")
_SIGNS = ("-", "+", "±")
_BEFORE_A_SIGN = ("", *WORDS["chinese"]["before_a_sign"])
_SAME = {word: sign for sign, words in WORDS["same"].items() for word in words}
_MINUTES = {word: minute for minute, word in WORDS["dates"]["minutes"].items()}
_LIST_BEFORE = re.compile(r"(?:^|[=:是为為]|\b(?:is|are|was|were|be))\s*$")
_FROM = re.compile(r"(?:from|从|自|由) ?$")
_LIST_AFTER = re.compile(r"\s*(?:[.。!?;]\s*)?(?:$|\n)")
_MAX_DEPTH, _MAX_ITEMS = 6, 12


@dataclass(frozen=True, slots=True)
class Token:
    """text[start:end]. `key` is how it is written where it is compared."""

    kind: str
    start: int
    end: int
    key: str
    value: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """A whole term at text[start:end]; `key` compares it."""

    key: str
    start: int
    end: int
    result: bool = False  # stands after an equals sign


def terms(text: str, *, spelled: bool = False) -> list[Term]:
    """All terms with a number or a symbol like π in them, in order.

    `text` went through `normalize_unicode` and `strip_latex`. `spelled` also looks for numbers in
    words.
    """
    tokens, found, at = _tokens(text, spelled), list[Term](), 0
    reader = _Reader(text, tokens)
    while at < len(tokens):
        end, term = reader.run(at)
        if term is not None:
            found.append(term)
        at = max(end, at + 1)
    return found


def _tokens(text: str, spelled: bool) -> list[Token]:
    pattern, tokens, at = _SPELLED_TOKEN if spelled else _TOKEN, list[Token](), 0
    while match := pattern.search(text, at):
        token = _read(match, text)
        if token.kind == "number":
            token = _quantity(pattern, text, token)
        tokens.append(token)
        at = token.end
    return tokens


def _read(match: re.Match[str], text: str) -> Token:
    token = Token(str(match.lastgroup), *match.span(), match[0])
    match token.kind:
        case "number":
            return _valued(token, None if _is_pair(match, text) else value_of(match), text)
        case "chinese":
            return _chinese(token, text)
        case "english":
            value = None if token.key.casefold() in ("one", "half") else parse_english(token.key)
            return _valued(token, value, text) if value is not None else replace(token, kind="word")
        case "date":
            key = re.sub(r"(?<=[0-9])(?:st|nd|rd|th|er)|\.(?= )|,", "", token.key)
            return replace(token, key=key.replace(" of ", " ").replace(".", "-").rstrip("-"))
        case "clock":
            return replace(token, key=_clock(match))
    return token


def _is_pair(match: re.Match[str], text: str) -> bool:
    """Whether a comma that may be a decimal comma stands between brackets: (0,1) is a pair."""
    before = text[max(0, match.start() - 2) : match.start()].rstrip(" ")
    after = text[match.end() : match.end() + 2].lstrip(" ")
    bracketed = before.endswith((*"([{⟨",)) and after.startswith((*")]}⟩",))
    return bracketed and _PAIR.fullmatch(match[0]) is not None


def _valued(token: Token, value: Fraction | None, text: str) -> Token:
    """`token` as a number with `value`; None if its form is not known."""
    if value is None:
        return replace(token, kind="number", key="".join(token.key.split()))
    half = _AND_HALF.match(text, token.end) if value.denominator == 1 else None
    if half:  # 两个半, 3小时半
        value, token = value + Fraction(1, 2), replace(token, end=half.end())
    return replace(token, kind="number", key=number_key(value), value=value)


def _chinese(token: Token, text: str) -> Token:
    value = parse_chinese(token.key)
    counted = token.key.endswith("打") or _MEASURE.match(text, token.end)
    before = text[token.start - 1 : token.start]
    lone = token.key in ("一", "一半") and not _AND_HALF.match(text, token.end)
    lone = lone and not _SHORT_REST.match(text, token.end)
    lone = lone and before not in [*"月年元块塊时時"]
    if value is None or not counted or lone or before in _DEMONSTRATIVES:
        return replace(token, kind="other")
    return _valued(token, value, text)


def _clock(match: re.Match[str]) -> str:
    time, half, hour = match["clock"], match["half"], match["hour"]
    if half:  # 3 pm, 3:00 pm
        time = time[: match.start("half") - match.start()].strip().replace(".", ":")
        return f"{time}{'' if ':' in time else ':00'}{half.lower()}m"
    if hour is None:
        return str(time)
    hour, minute = (
        _whole(hour),
        _MINUTES.get(match["minute"]) or _whole(match["minute"].rstrip("分")),
    )
    return f"{hour}:{minute:0>2}" if hour and minute else str(time)


def _whole(text: str) -> str | None:
    value = Fraction(text) if text.isascii() else parse_chinese(text)
    return None if value is None else str(value)


def _quantity(pattern: re.Pattern[str], text: str, token: Token) -> Token:
    """`token` with all that touches it: further units (3元5角), further numbers (5月1日, 1 2)."""
    part = Fraction(1)  # of the first unit
    apart: re.Match[str] | None = None  # unit before a number that was not added
    while following := _following(pattern, text, token):
        unit, number, worth = following
        if worth and token.value is not None and number.value is not None:
            part *= worth
            value = token.value + number.value * part
            token = replace(token, end=number.end, key=number_key(value), value=value)
            continue
        between = text[token.end : number.start].strip() if unit else " "
        between += " " * between[-1:].isascii() * between[-1:].isalpha()
        key = token.key + between + number.key
        token, apart = replace(token, end=number.end, key=key, value=None), unit
    trailing = _TOUCHING_UNIT.match(text, token.end) if apart and token.value is None else None
    if trailing:
        token = replace(token, end=trailing.end(), key=token.key + trailing[0])
    return token


def _following(
    pattern: re.Pattern[str], text: str, token: Token
) -> tuple[re.Match[str] | None, Token, Fraction | None] | None:
    """The number that touches `token`, the unit between the two, and the worth of its own in it."""
    for unit in (_NEXT_UNIT.match(text, token.end), _TOUCHING_UNIT.match(text, token.end), None):
        at = unit.end() if unit else token.end + 1
        if unit is None and text[token.end : at] != " ":
            continue
        match = pattern.match(text, at)
        number = _read(match, text) if match else None
        if number is None or number.kind != "number" or number.key[0] in "+-":
            continue
        if unit is None or unit.re is _TOUCHING_UNIT:
            return unit, number, None
        second = UNIT_WORD.match(text, number.end)
        worth = _worth(unit, second, number)
        if worth or (second is None and unit["han"]):
            return unit, number, worth
    return None


def _worth(unit: re.Match[str], second: re.Match[str] | None, number: Token) -> Fraction | None:
    """What the unit of `number` is worth in the unit before it, if it is a smaller one."""
    name = unit["han"] or unit["word"]
    if second is None:  # 3块5, 1米8, 2米05
        places = number.end - number.start
        short = name in [*"元块塊米"] and number.value and places <= 2
        return Fraction(1, 10**places) if short and number.value < 10**places else None
    smaller = second["han"] or second["word"]
    ratios = (f[smaller] / f[name] for f in _UNITS if name in f and smaller in f)
    return next((ratio for ratio in ratios if ratio < 1), None)


class _Reader:
    """Recursive descent over the tokens of a text. Each rule gives the index after its end."""

    def __init__(self, text: str, tokens: Sequence[Token]) -> None:
        self.text = text
        self.tokens = [*tokens, Token("end", len(text), len(text), "")]

    def run(self, at: int) -> tuple[int, Term | None]:
        """The term that begins at token `at`, and where reading goes on."""
        items, joints, end = list[tuple[int, int]](), list[Token](), at
        while len(items) < _MAX_ITEMS and (stop := self._item(end)) is not None:
            items.append((end, stop))
            end = stop
            joint = self.tokens[end]
            if joint.kind not in ("sep", "range", "ratio") or not self._joins(end):
                break
            joints.append(joint)
            end += 1
        if not items:
            return at + 1, None
        if len(items) > 1 and not self._closed(items, joints):
            items = items[:1]
        start, end = items[0][0], items[-1][1]
        if not self._counts(start, end):
            return end, None
        return end, self._list(items, joints) if len(items) > 1 else self._single(start, end)

    def _single(self, start: int, end: int) -> Term:
        """The term of one item: the last side of an equation, else the whole."""
        side, relations, at = (start, end), set[str](), start
        while at < end and (stop := self._item(at, joints=("op",))) is not None:
            if self._counts(at, stop):
                side = (at, stop)
            if stop < end:
                relations.add(self.tokens[stop].key)
            at = stop + 1
        result = bool(relations) and relations <= {"=", "≈"}
        return self._term(*(side if result else (start, end)), result=result)

    def _counts(self, start: int, end: int) -> bool:
        """Whether tokens[start:end] hold one that makes a term: an exponent alone does not."""
        return any(
            self.tokens[at].kind in _COUNTED and not (at and self.tokens[at - 1].key == "^")
            for at in range(start, end)
        )

    def _list(self, items: Sequence[tuple[int, int]], joints: Sequence[Token]) -> Term:
        whole = self._term(items[0][0], items[-1][1])
        if any(joint.kind != "sep" for joint in joints[: len(items) - 1]):
            return whole
        keys = [self._term(*item).key for item in items]
        names = {key.partition("=")[0] for key in keys if "=" in key}
        if len(names) == 1 and "=" in keys[0]:  # x=5 or x=-3
            keys = [key.rpartition("=")[2] for key in keys]
        keys = sorted(set(keys)) if not any("=" in key for key in keys) else keys
        return replace(whole, key=", ".join(keys))

    def _term(self, start: int, end: int, *, result: bool = False) -> Term:
        tokens = self.tokens[start:end]
        while len(tokens) > 2 and tokens[0].key == "(" and self._operand(start) == end:
            inner = self._item(start + 1)
            # (2,3) without a space is a pair.
            if inner != end - 1 or any(t.kind == "rel" or "," in t.key for t in tokens):
                break
            start, end = start + 1, end - 1
            tokens = self.tokens[start:end]
        return Term(_written(tokens), tokens[0].start, tokens[-1].end, result)

    def _joins(self, at: int) -> bool:
        """Whether the joint at token `at` may join its neighbours."""
        joint = self.tokens[at]
        if joint.key == ":":
            return (self.text[joint.start - 1] == " ") == (self.text[joint.end :][:1] == " ")
        start = self.tokens[at - 1].start
        return joint.kind != "range" or not _FROM.search(self.text[max(0, start - 6) : start])

    def _closed(self, items: Sequence[tuple[int, int]], joints: Sequence[Token]) -> bool:
        """Whether commas enumerate: the list has an "and", or stands alone."""
        if any(joint.key not in ",;" for joint in joints[: len(items) - 1]):
            return True
        start, end = self.tokens[items[0][0]].start, self.tokens[items[-1][1] - 1].end
        before, after = self.text[max(0, start - 20) : start], self.text[end : end + 20]
        return bool(_LIST_BEFORE.search(before) and _LIST_AFTER.match(after))

    def _item(self, at: int, depth: int = 0, joints: Sequence[str] = ("rel", "op")) -> int | None:
        """operand { joint operand }"""
        end = self._operand(at, depth)
        while end is not None and self.tokens[end].kind in joints:
            stop = self._operand(end + 1, depth)
            if stop is None:
                break
            end = stop
        return end

    def _operand(self, at: int, depth: int = 0) -> int | None:
        """primary { factor }"""
        end = self._primary(at, depth)
        while end is not None and (more := self._factor(end, depth)) is not None:
            end = more
        return end

    def _primary(self, at: int, depth: int) -> int | None:
        most = at + _MAX_ITEMS  # signs and roots in a row
        while at < most and (self.tokens[at].kind == "root" or self._is_sign(at)):
            at += 1
        if self.tokens[at].kind == "open":
            return self._bracket(at, depth)
        return at + 1 if self.tokens[at].kind in (*_COUNTED, "var") else None

    def _factor(self, at: int, depth: int) -> int | None:
        """A factor without an operator, as in 2π, 3(x + 1) or f(x)."""
        before, token = self.tokens[at - 1], self.tokens[at]
        gap = token.start - before.end
        if gap <= 1 and token.kind in ("root", "symbol"):
            return self._primary(at, depth)
        if gap == 0 and token.key == "(":
            return self._bracket(at, depth)
        variable = token.kind == "var" and (
            (gap <= 1 and before.kind == "symbol")
            or (gap == 0 and (token.key in _FACTORS or before.kind == "var"))
        )
        return at + 1 if variable or (gap == 1 and token.key == "factorial") else None

    def _bracket(self, at: int, depth: int) -> int | None:
        for _ in range(_MAX_ITEMS if depth < _MAX_DEPTH else 0):
            end = self._item(at + 1, depth + 1)
            if end is None:
                return None
            if self.tokens[end].kind == "close":
                return end + 1
            if self.tokens[end].key not in (",", ";"):
                return None
            at = end
        return None

    def _is_sign(self, at: int) -> bool:
        if self.tokens[at].key not in _SIGNS:
            return False
        start = self.tokens[at].start
        before = self.text[max(0, start - 2) : start].rstrip(" ")[-1:]
        return before in _BEFORE_A_SIGN or not (before.isalnum() or before in ")]}%")


def _written(tokens: Sequence[Token]) -> str:
    """One way of writing a term: no spaces but where digits would run together."""
    if len(tokens) == 1:
        return tokens[0].key
    out = ""
    for token in tokens:
        key = token.key.casefold() if token.kind == "var" else _SAME.get(token.key, token.key)
        apart = out[-1:].isalnum() and key[0].isalnum() and token.kind not in ("var", "symbol")
        out += f" {key} " if token.kind in ("sep", "range") and key.isalpha() else apart * " " + key
    # (2, 300) is not (2,300), (0, 2π) not (0,2π).
    return _LIKE_A_NUMBER.sub(", ", " ".join(out.split()))
