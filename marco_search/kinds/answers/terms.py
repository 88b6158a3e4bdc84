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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from marco_search.kinds.answers.numbers import CHINESE, NUMBER, number_key, value_of
from marco_search.kinds.answers.numerals import (
    DIGIT_CHARS,
    NUMBER_WORDS,
    UNIT_CHARS,
    parse_chinese,
    parse_english,
)

_MONTH = (
    "(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?"
    "|Januar|Februar|März|Mai|Juni|Juli|Oktober|Dezember|janvier|février|mars|avril|mai|juin|juillet"
    "|août|septembre|octobre|novembre|décembre|enero|febrero|marzo|abril|mayo|junio|julio|agosto"
    r"|septiembre|octubre|noviembre|diciembre)\b\.?"
)
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
# What a spelled Chinese numeral must stand before to be a count rather than a part of a word.
_MEASURE = re.compile(
    r"\s*(?:[个個只隻本张張元块塊美欧人天日小分秒岁歲条條件次颗顆米公千克斤支辆辆棵朵页頁年月周倍"
    r"名位头頭匹箱盒袋瓶杯升毫厘平方立份枚双雙对對套层層排行里英尺寸吨噸度枝根片节節课課场場种種道題题"
    r"把台架艘座间間扇桶罐包串组組队隊轮輪首部篇封句顿頓盘盤碗点點号號和或与比到至、以多余]"
    r"|角(?![形度边邊落])|毛(?![巾衣线線病笔筆])|[,.:;!?。、)\]]|$)"
)
_DEMONSTRATIVE = re.compile(r"[这那每哪几某前后上下另各任这]$")
_HAN = r"[\u4e00-\u9fff]"
_NO_UNIT = (
    f"和或与與及跟到至比加减減乘除是为為等共约約有零半余餘负負用又且的{DIGIT_CHARS}{UNIT_CHARS}"
)
_AND_HALF = re.compile(
    rf" ?(?![{_NO_UNIT}]){_HAN}{{1,2}}(?<![{_NO_UNIT}])半(?![径徑圆圓球路数數价價])"
)
_UNITS: tuple[dict[str, Fraction], ...] = tuple(
    {unit: Fraction(worth) for worth, units in family.items() for unit in units.split()}
    for family in (
        {"1": "元 块 塊 圆 圓 yuan dollar", "1/10": "角 毛", "1/100": "分 cent"},
        {"86400": "天 日 day", "3600": "小时 小時 时 hour hr h", "60": "分钟 分鐘 分 minute min m",
         "1": "秒钟 秒 second sec s"},
        {"12": "年 year", "1": "个月 個月 month"},
        {"1000": "千米 公里 km kilometer kilometre", "1": "米 m meter metre", "1/10": "分米 dm",
         "1/100": "厘米 公分 cm centimeter centimetre", "1/1000": "毫米 mm"},
        {"12": "foot feet ft", "1": "inche inch in"},
        {"1000": "吨 噸 ton", "1": "千克 公斤 kg kilogram", "1/1000": "克 g gram"},
        {"16": "pound lb", "1": "ounce oz"},
        {"1000": "升 l L liter litre", "1": "毫升 ml mL"},
    )
)  # fmt: skip
"""Units that follow each other in one quantity, with what they are worth in each other."""
_UNIT = (
    r" ?(?:(?P<word>[A-Za-z]+?)s?(?![A-Za-z])|(?P<han>"
    + "|".join(sorted({u for f in _UNITS for u in f if not u.isascii()}, key=len, reverse=True))
    + "))"
)
_UNIT_WORD = re.compile(_UNIT)
_NEXT_UNIT = re.compile(_UNIT + r"(?:\.?,?(?: and)? ?|[零又])")
_TOUCHING_UNIT = re.compile(
    r"(?:[°'][NSEWnsew]?,? ?|[平立]方(?:分米|厘米|米)"
    rf"|小时|分钟|千米|厘米|千克|公斤|(?![{_NO_UNIT}]){_HAN})"
)
_FACTORS = frozenset("xyznijabB")  # 7B may be billions or a variable: no plain 7
_COUNTED = ("number", "date", "clock", "symbol")
_SIGNS = ("-", "+", "±")
_SAME = {"pi": "π", "sqrt": "√", "比": ":", "×": "*", "÷": "/", "out of": "/", "out of every": "/",
         "over": "/", "to the power of": "^",
         "to the ": "^", "根号": "√", "根號": "√", "倍根号": "√", "square root of": "√",
         "余": "...", "餘": "...", "......": "...", "到": "~", "至": "~", "to": "~", "和": ",",
         "与": ",", "&": ",",
         "<=": "≤", ">=": "≥"}  # fmt: skip
_LIST_BEFORE = re.compile(r"(?:^|[=:是为為]|\b(?:is|are|was|were|be))\s*$")
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
    reader = _READERS.get(token.kind)
    return reader(token, match, text) if reader else token


def _quantity(pattern: re.Pattern[str], text: str, token: Token) -> Token:
    """`token` with all that touches it: further units (3元5角), further numbers (5月1日, 1 2)."""
    worth: Fraction | None = None  # of the first unit
    last: re.Match[str] | None = None  # unit before a number that was not added
    while following := _following(pattern, text, token):
        unit, number = following
        added = _added(text, token, unit, number, worth) if unit else None
        if added is None:
            between = text[token.end : number.start].strip() if unit else " "
            between += " " * between[-1:].isascii() * between[-1:].isalpha()
            key = token.key + between + number.key
            token, last = replace(token, end=number.end, key=key, value=None), unit
            continue
        value, worth = added
        token = replace(token, end=number.end, key=number_key(value), value=value)
    trailing = _TOUCHING_UNIT.match(text, token.end) if last and token.value is None else None
    if trailing:
        token = replace(token, end=trailing.end(), key=token.key + trailing[0])
    return token


def _following(
    pattern: re.Pattern[str], text: str, token: Token
) -> tuple[re.Match[str] | None, Token] | None:
    """The number that touches `token`, and the unit between the two."""
    for unit in (_NEXT_UNIT.match(text, token.end), _TOUCHING_UNIT.match(text, token.end), None):
        at = unit.end() if unit else token.end + 1
        if unit is None and text[token.end : at] != " ":
            continue
        match = pattern.match(text, at)
        number = _read(match, text) if match else None
        if number is None or number.kind != "number" or number.key[0] in "+-":
            continue
        if unit is None or unit.re is _TOUCHING_UNIT or _follows(text, unit, number):
            return unit, number
    return None


def _added(
    text: str,
    token: Token,
    unit: re.Match[str],
    number: Token,
    worth: Fraction | None,
) -> tuple[Fraction, Fraction] | None:
    """The sum of two quantities in units of one family, and what the first unit is worth."""
    if unit.re is not _NEXT_UNIT or token.value is None or number.value is None:
        return None
    second = _UNIT_WORD.match(text, number.end)
    for family in _family(unit):
        above = family[_name(unit)]
        below = family.get(_name(second)) if second else None
        if second is None and _name(unit) in "元块塊米" and 0 < number.value < 10:
            below = above / 10  # 3块5, 1米8
        if below is not None and below < above:
            first = worth or above
            return token.value + number.value * below / first, first
    return None


def _follows(text: str, unit: re.Match[str], number: Token) -> bool:
    """Whether the number has a smaller unit of the same family, or needs none (3块5)."""
    second = _UNIT_WORD.match(text, number.end)
    if second is None:
        return bool(unit["han"])
    return any(f.get(_name(second), f[_name(unit)]) < f[_name(unit)] for f in _family(unit))


def _family(unit: re.Match[str]) -> list[dict[str, Fraction]]:
    return [family for family in _UNITS if _name(unit) in family]


def _name(unit: re.Match[str]) -> str:
    return str(unit["han"] or unit["word"])


def _number(token: Token, match: re.Match[str], text: str) -> Token:
    return _valued(replace(token, kind="number"), value_of(match), text)


def _valued(token: Token, value: Fraction | None, text: str) -> Token:
    if value is None:
        return replace(token, key="".join(token.key.split()))
    half = _AND_HALF.match(text, token.end) if value.denominator == 1 else None
    if half:  # 两个半, 3小时半
        value, token = value + Fraction(1, 2), replace(token, end=half.end())
    return replace(token, key=number_key(value), value=value)


def _chinese(token: Token, match: re.Match[str], text: str) -> Token:
    value = parse_chinese(match[0])
    counted = match[0].endswith("打") or _MEASURE.match(text, token.end)
    meant = counted and not _DEMONSTRATIVE.search(text[: token.start])
    lone = match[0] in ("一", "一半") and not _AND_HALF.match(text, token.end)
    lone = lone and text[token.start - 1 : token.start] not in [*"月年元块塊时時"]
    if value is None or not meant or lone:
        return replace(token, kind="other")
    return _valued(replace(token, kind="number"), value, text)


def _english(token: Token, match: re.Match[str], text: str) -> Token:
    value = parse_english(match[0])
    if value is None or match[0].casefold() in ("one", "half"):
        return replace(token, kind="word")
    return replace(token, kind="number", key=number_key(value), value=value)


def _date(token: Token, match: re.Match[str], text: str) -> Token:
    key = re.sub(r"(?<=[0-9])(?:st|nd|rd|th|er)|\.(?= )", "", match[0]).replace(",", "")
    return replace(token, key=key.replace(" of ", " ").replace(".", "-").rstrip("-"))


def _clock(token: Token, match: re.Match[str], text: str) -> Token:
    if match["half"]:  # 3 pm, 3:00 pm
        time = match[0][: match.start("half") - match.start()].strip().replace(".", ":")
        return replace(token, key=f"{time}{'' if ':' in time else ':00'}{match['half'].lower()}m")
    if match["hour"] is None:
        return token
    minute = {"半": "30", "一刻": "15", "三刻": "45"}.get(match["minute"])
    hour, minute = _whole(match["hour"]), minute or _whole(match["minute"].rstrip("分"))
    return replace(token, key=f"{hour}:{minute:0>2}") if hour and minute else token


def _whole(text: str) -> str | None:
    value = Fraction(text) if text.isascii() else parse_chinese(text)
    return None if value is None else str(value)


_READERS = {
    "number": _number, "unit": _number, "chinese": _chinese, "english": _english,
    "date": _date, "clock": _clock,
}  # fmt: skip


class _Reader:
    """Recursive descent over the tokens of a text. Each rule gives the index after its end."""

    def __init__(self, text: str, tokens: Sequence[Token]) -> None:
        self.text, self.tokens = text, tokens

    def run(self, at: int) -> tuple[int, Term | None]:
        """The term that begins at token `at`, and where reading goes on."""
        items, joints, end = list[tuple[int, int]](), list[Token](), at
        while (stop := self._item(end)) is not None and len(items) < _MAX_ITEMS:
            items.append((end, stop))
            end = stop
            joint = self._kind(end)
            if joint not in ("sep", "range", "ratio") or not self._joins(end):
                break
            joints.append(self.tokens[end])
            end += 1
        if not items:
            return at + 1, None
        if len(items) > 1 and not self._closed(items, joints):
            items = items[:1]
        start, end = items[0][0], items[-1][1]
        if not any(self._counts(i) for i in range(start, end)):
            return end, None
        return end, self._list(items, joints) if len(items) > 1 else self._single(start, end)

    def _single(self, start: int, end: int) -> Term:
        """The term of one item: the last side of an equation, else the whole."""
        sides, relations = self._sides(start, end)
        if relations and all(r in ("=", "≈") for r in relations):
            counted = [s for s in sides if any(self._counts(i) for i in range(*s))]
            return self._term(*counted[-1], result=True)
        return self._term(start, end)

    def _counts(self, at: int) -> bool:
        """Whether a token makes a term of what it stands in: an exponent alone does not."""
        return self.tokens[at].kind in _COUNTED and not (at and self.tokens[at - 1].key == "^")

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

    def _sides(self, start: int, end: int) -> tuple[list[tuple[int, int]], list[str]]:
        sides, relations, at = list[tuple[int, int]](), list[str](), start
        while at < end and (stop := self._expr(at)) is not None:
            sides.append((at, stop))
            if stop < end:
                relations.append(self.tokens[stop].key)
            at = stop + 1
        return sides, relations

    def _joins(self, at: int) -> bool:
        """Whether the joint at token `at` may join its neighbours."""
        joint = self.tokens[at]
        before, after = self.text[joint.start - 1], self.text[joint.end : joint.end + 1]
        if joint.key == ":":
            return (before == " ") == (after == " ")
        if joint.kind == "range":
            start = self.tokens[at - 1].start
            return not re.search(r"(?:from|从|自|由) ?$", self.text[:start][-6:])
        return True

    def _closed(self, items: Sequence[tuple[int, int]], joints: Sequence[Token]) -> bool:
        """Whether commas enumerate: the list has an "and", or stands alone."""
        if any(joint.key not in ",;" for joint in joints[: len(items) - 1]):
            return True
        before = self.text[: self.tokens[items[0][0]].start]
        after = self.text[self.tokens[items[-1][1] - 1].end :]
        return bool(_LIST_BEFORE.search(before[-20:]) and _LIST_AFTER.match(after[:20]))

    def _item(self, at: int, depth: int = 0) -> int | None:
        return self._chain(at, "rel", self._expr, depth)

    def _expr(self, at: int, depth: int = 0) -> int | None:
        return self._chain(at, "op", self._operand, depth)

    def _chain(
        self, at: int, kind: str, part: Callable[[int, int], int | None], depth: int
    ) -> int | None:
        """part { kind part }"""
        end = part(at, depth)
        while end is not None and self._kind(end) == kind:
            stop = part(end + 1, depth)
            if stop is None:
                break
            end = stop
        return end

    def _operand(self, at: int, depth: int = 0) -> int | None:
        while self._kind(at) == "root" or (self._text(at) in _SIGNS and self._is_sign(at)):
            at += 1
        kind = self._kind(at)
        if kind == "open":
            end = self._bracket(at, depth)
        else:
            end = at + 1 if kind in (*_COUNTED, "var") else None
        while end is not None and (more := self._factor(end, depth)) is not None:
            end = more
        return end

    def _factor(self, at: int, depth: int) -> int | None:
        """A factor without an operator, as in 2π, 3(x + 1) or f(x)."""
        kind, text = self._kind(at), self._text(at)
        if kind is None:
            return None
        gap = self.tokens[at].start - self.tokens[at - 1].end
        if text == "factorial" and gap == 1:
            return at + 1
        if kind in ("root", "symbol") and gap <= 1:
            return self._operand(at, depth)
        before = self.tokens[at - 1].kind
        if kind == "var" and before == "symbol" and gap <= 1:
            return at + 1
        if kind == "var" and not gap and (text in _FACTORS or before == "var"):
            return at + 1
        if kind == "open" and text == "(" and not gap:
            return self._bracket(at, depth)
        return None

    def _bracket(self, at: int, depth: int) -> int | None:
        if depth >= _MAX_DEPTH:
            return None
        for _ in range(_MAX_ITEMS):
            end = self._item(at + 1, depth + 1)
            if end is None:
                return None
            if self._kind(end) == "close":
                return end + 1
            if self._text(end) not in (",", ";"):
                return None
            at = end
        return None

    def _is_sign(self, at: int) -> bool:
        before = self.text[: self.tokens[at].start].rstrip(" ")[-1:]
        return not before or not (before.isalnum() or before in ")]}%")

    def _kind(self, at: int) -> str | None:
        return self.tokens[at].kind if at < len(self.tokens) else None

    def _text(self, at: int) -> str:
        return self.tokens[at].key if at < len(self.tokens) else ""


def _written(tokens: Sequence[Token]) -> str:
    """One way of writing a term: no spaces but where digits would run together."""
    if len(tokens) == 1:
        return tokens[0].key
    out = ""
    for token in tokens:
        key = token.key.casefold() if token.kind == "var" else _SAME.get(token.key, token.key)
        apart = out[-1:].isalnum() and key[0].isalnum() and token.kind not in ("var", "symbol")
        out += f" {key} " if token.kind in ("sep", "range") and key.isalpha() else apart * " " + key
    # (2, 300) is not (2,300).
    return re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", ", ", " ".join(out.split()))
