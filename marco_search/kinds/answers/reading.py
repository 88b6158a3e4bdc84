"""Reads the one right answer of a reasoning job out of its Output part.

The answer is looked for in this order: \\boxed{...}; after "the answer is", "答案是", "####"
or the like (the last of them); option letters that begin the output ("(D) 27 sec", "A, C"); a
leading yes or no; the only bold phrase; the first line, if it is a number with its unit;
the last term meant as a result, in words where there are no digits; else the whole output as
text. Code is always taken as text.

Not meant as a result are operands ("8 lessons * 3"), labels ("Step 2", list numbers), bounds
("more than 5") and what stands in a clause that only gives the reason or the purpose. Of those
left, the result of the last equation in a sentence is taken, else its last term.

A numeral is taken whole or not at all (marco_search.kinds.answers.terms), and the key of an
answer is read as itself.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from marco_search.kinds.answers import WORDS, alternatives
from marco_search.kinds.answers.normalization import (
    normalize_unicode,
    strip_latex,
    text_answer,
    text_key,
)
from marco_search.kinds.answers.numbers import DIGIT_CHARS, number_key, parse_number
from marco_search.kinds.answers.terms import UNIT_WORD, Term, terms
from marco_search.kinds.base import ExtractedAnswer

_BOXED = re.compile(r"\\f?boxed\s*")
_DASH = r"(?:\s+-{1,2})+\s+"  # "Answer — 5" is not -5
_DASH_BEFORE_NUMBER = rf"{_DASH}(?=\W{{0,3}}[0-9])(?!.*\s-\s)"
_ANNOUNCED = "|".join(
    normalize_unicode(rf"{form['noun']}{form.get('more', '')}(?:{_DASH}|\s*{form['verb']})")
    for form in WORDS["announcements"]
)
_MARKER = re.compile(
    r"(?:\b(?<!no )(?:answer|result|solution|option|choice)\b"
    r"(?: to [^.\n]{1,60}?\s(?:is|was|are|equals)"
    rf"|\s*(?:is|was|are|=|:|equals|(?:should|must|would) be)|{_DASH_BEFORE_NUMBER})"
    r"(?: (?:that|therefore|thus)\b)?"
    r"|(?:答案|结果|結果|选项|選項|(?<!解)答)\s*(?:就?[应應]?该?是|[选選](?![项項])|[应應]?[为為]|等[于於]|:|=)|####"
    rf"|(?:答案|结果|結果|答){_DASH_BEFORE_NUMBER}"
    r"|^[ #*_]*(?:the |final |correct )*(?:answer|result)[ *_]*\n"
    r"|^[ #*_]*(?:最终|正确)?答案[ *_]*\n"
    rf"|{_ANNOUNCED})[\s:]*",
    re.IGNORECASE | re.MULTILINE,
)
_LETTER = r"(?:\([A-J]\)|[A-J](?![A-Za-z]))"
_LETTERS = re.compile(
    rf"{_LETTER}(?:\s*(?:,?\s*(?:and|or|&)\s|[,、和或与與及])\s*{_LETTER})*|\([a-j]\)(?=\s|$)"
)
_RUN_OF_LETTERS = re.compile(r"A?B?C?D?E?F?G?(?![A-Za-z])")
# What may follow letters that are the answer: after "the answer is", and anywhere. "I," is a
# pronoun, "A:" as often the answer to "Q:" as an option, "A man" and "A和B" begin a sentence.
_AFTER_ANNOUNCED = re.compile(
    r"(?![A-Za-z])\W*(?:$|because|since|as\b|for\b|due|is\b|are\b|[\u3040-\u9fff])|[.,:;!?)。]",
    re.I,
)
_AFTER_ANYWHERE = re.compile(
    r"[.、,)](?=\s|$)|。|[,;](?=因)|:(?=\s)|\s*$|\s+(?:is|are)(?: both)? (?:right|correct|the)\b"
    r"|选项|選項|[是都]?[正对對]"
)
_OPTION_LED = re.compile(
    rf"(?:option|choice|选项?|選項?|[应應][选選]|故[选選])\s*:?\s*(?={_LETTER}|[A-G]{{2,7}}(?![A-Za-z]))",
    re.I,
)
_YES_NO = {word: key for key, words in WORDS["yes_no"].items() for word in words.split()}
_FIRST_WORD = re.compile(
    r"\W*([A-Za-z]+|[\u4e00-\u9fff]+)(?=\s*(?:[,.;:!。*]|- |$))(?!\. ?[0-9])", re.M
)
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*(?!\s*:)")
_BOLD_TAG = re.compile("</?(?:b|strong)>", re.IGNORECASE)
_LINE_BREAK = re.compile("<br ?/?>", re.IGNORECASE)
_ROLES = {role: alternatives(phrases) for role, phrases in WORDS["roles"].items()}
_HEADING = re.compile(
    rf"(?:(?:the|final|correct|detailed) )*(?:最终|正确|详细)?(?:{_ROLES['headings']})\W*", re.I
)
_LEAD = re.compile(rf"(?:{_ROLES['approximately']}|\s)*")
_BOUND_LED = re.compile(rf"{_ROLES['bound_leads']}|not(?= )", re.I)
_UNIT = re.compile(
    r"\s*(?:(?!(?:and|or|to|plus|minus|times)\b)[^\W\d_]++(?:\s?\^-?[0-9])?[\s/·.-]*|[°€$£¥%\"']\s*){0,5}"
    r"(?:\([^()\d]*\))?[.。!]?\s*"
)
_JOINT = re.compile(
    r"(?:(?:[ ]?(?:[^\W\d_]++|°)){0,3}\.?(?:,? (?:and|or|und|oder|et|ou|y|o|и|или) |, ?|[和、与或])"
    r"|(?:[ ]?[^\W\d_]+\.?)?(?:[ ](?:by|x))?[ ])[$€£¥]?"
)
_NAME = r"(?:(?![共总總剩还還所则即答就])[\u4e00-\u9fff])"
_NAMED = re.compile(rf"{_NAME}{{0,4}}[,、;]?[ ]?{_NAME}{{0,3}}")  # 鸡5只,兔3只
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K: 3+4=<<3+4=7>>7
# A factorial, where "!" does not end a sentence.
_FACTORIAL = re.compile(
    r"([0-9)]|\b[a-z](?!!=))!(?=\s*(?:[$})=/^+0-9]|\*(?!\*)|\\[)\]])|\s[a-z])"
    r"|(^\s*(?:[0-9]+|[a-z])|[/*^] ?[0-9]+)!(?=\s*$)"
)
_MATRIX = re.compile(r"begin ?\{(?:[a-zA-Z]?matrix|cases|array)")
_SPAN = "(?i:(hour|day|week|month|year|mile)s?)"
_WRITTEN = [
    (re.compile(pattern, re.MULTILINE), written)
    for pattern, written in (
        (" {2,}", " "),
        (r"\+ ?/ ?-|\+-|正[负負]", "±"),
        (r"(?<=[(\[{⟨]0),(?=[0-9]+[/π√^x])", ", "),
        (r"(?:倍?根[号號]|\bsqrt|√) ?(?=[0-9])", "√"),
        (r"(?:√|\bsqrt) ?\(([0-9]+(?:\.[0-9]+)?)\)(?! ?[\^0-9.,])", r"√\1"),
        (
            r"(^|[=:(\[{,<>≤≥≈]|\b(?:is|are|was)\b|[是为為])[ ]*([-+])[ ](?=[$€£¥]?[0-9.√π(])",
            r"\1\2",
        ),
        (r"(?<=[0-9])(?: ?[rR] ?|,? (?:with )?(?:an? )?remainder (?:of |is )?)(?=[0-9])", "..."),
        (r"(?<![A-Za-z0-9])([0-9.]+(?:h|hr|m|min|ft|kg|km|lb|d))(?=[0-9])(?![23]\b)", r"\1 "),
        (rf"\b(?i:an?|one) {_SPAN} (?i:and a half)\b", r"1 and a half \1"),
        (rf"\b([0-9]+) {_SPAN} (?i:and a half)\b", r"\1 and a half \2"),
        (r"[$€]([0-9]+) and (?=[0-9]{1,2} cents?\b)", r"\1 dollars and "),
        (rf"(?:零下|[负負]) ?(?=[0-9{DIGIT_CHARS}十])", "负"),
        (r"(?i)(?<![0-9.])([0-9][0-9.]*(?: ?°?[A-Za-z]+){0,2}) below zero\b", r"-\1"),
    )
]
"""Other ways of writing a number, each with the one that terms are read from. In this order."""
_MAX_CHARS = 8_000
"""Of a longer output only the end is read: that is where the result stands."""
_MAX_READINGS = 4


@lru_cache(64)  # a search's result reads once more what its rollouts said, often the same
def read_answer(output: str) -> ExtractedAnswer | None:
    """The answer in an Output part, by the rules above."""
    found = _read(output)
    for _ in range(_MAX_READINGS):
        # A text's key is what the text itself is read as, so that reading keys changes none.
        if found is None or (again := _read(found.key)) is None:
            return None
        if again.key == found.key:
            break
        found = ExtractedAnswer(again.key, found.display)
    return found


def _read(output: str) -> ExtractedAnswer | None:
    if "```" in output:
        key = text_key(output)
        return ExtractedAnswer(f"```{key}", output.strip()) if key else None
    if len(output) > _MAX_CHARS:
        output = output[-_MAX_CHARS:]
    output = _LINE_BREAK.sub("\n", _BOLD_TAG.sub("**", output))
    output = _FACTORIAL.sub(lambda m: f"{m[1] or m[2]} factorial", output)
    boxed = _last_boxed(output)
    if boxed is not None:
        return _short(boxed)
    folded = normalize_unicode(output)
    markers = list(_MARKER.finditer(folded))
    if _MATRIX.search(folded):
        return _matrix(folded[markers[-1].end() :] if markers else output)
    if markers:
        after = folded[markers[-1].end() :]
        if after.strip(" \n*.。"):
            return _sentence(after)
    return _whole(output, folded)


def _whole(output: str, folded: str) -> ExtractedAnswer | None:
    word = _choice(folded)
    if word is not None:
        return word
    bold = [b.strip() for b in _BOLD.findall(folded) if b.strip()[-1:] != ":"]
    bold = list(dict.fromkeys(b for b in bold if b and not _HEADING.fullmatch(b)))
    if len(bold) == 1:
        return _short(bold[0])
    text = _tidy(folded)
    return _number_alone(text.partition("\n")[0]) or _number_in(text) or text_answer(output)


def _sentence(text: str) -> ExtractedAnswer | None:
    """The answer at the beginning of what follows "the answer is"."""
    text = _tidy(text)
    word = _choice(text, announced=True)
    if word is not None:
        return word
    first = re.split(r"[。!?;\n]|\.(?=\s|$)", text, maxsplit=1)[0]
    if _BOUND_LED.match(first):
        return text_answer(first)
    found, lead = _candidates(first), _LEAD.match(first)
    if found and lead and found[0].start <= lead.end() and _is_free(first, found[0]):
        return _shown(first, found[0])
    return _number_alone(first) or _number_in(first) or text_answer(first)


def _short(text: str) -> ExtractedAnswer | None:
    """The answer in a phrase that holds nothing else: a box, a bold phrase."""
    phrase = _tidy(normalize_unicode(text))
    if _MATRIX.search(text):
        return _matrix(text)
    return _choice(phrase, announced=True) or _number_alone(phrase, named=True) or text_answer(text)


def _matrix(text: str) -> ExtractedAnswer | None:
    """Matrices, written with one way of spacing; round and square brackets are alike."""
    spaced = re.sub(r"(?:\s*\\\\)+\s*(?=\\end)", " ", text.replace("$", " "))
    spaced = re.sub(r"\s*\\\\\s*", "; ", re.sub(r"\s*&\s*", " & ", spaced))
    spaced = re.sub(r"\s*\\?(begin|end) ?\{[pbB]?(\w+)\}\s*", r" \1 {\2} ", spaced)
    found = text_answer(spaced)
    return found and ExtractedAnswer(found.key, text.strip())


def _choice(text: str, *, announced: bool = False) -> ExtractedAnswer | None:
    """Option letters, yes or no at the beginning of `text`."""
    bare = text.lstrip(" \n*\"'")
    letters = _letters(bare, announced)
    if letters:
        key = ", ".join(sorted(set(letters)))
        return ExtractedAnswer(key, key)
    word = _FIRST_WORD.match(bare)
    known = _YES_NO.get(word[1].casefold()) if word else None
    return ExtractedAnswer(known, word[1]) if word and known else None


def _letters(text: str, announced: bool) -> list[str]:
    led = _OPTION_LED.match(text)
    text, announced = (text[led.end() :], True) if led else (text, announced)
    run = _RUN_OF_LETTERS.match(text)
    if run and len(run[0]) > 1 and (announced or run[0] == text.strip(" .。*\n")):
        return list(run[0])
    match = _LETTERS.match(text)
    if match is None:
        return []
    letters = re.findall("[A-J]", match[0]) or [match[0][1].upper()]  # "(d)"
    after = text[match.end() :]
    if match[0][-1] == ")":
        return letters if not after[:1].isalnum() else []
    if announced:
        return letters if _AFTER_ANNOUNCED.match(after) else []
    ends = _AFTER_ANYWHERE.match(after) and (letters[0], after[:1]) != ("A", ":")
    return letters if ends and letters != ["I"] else []


def _number_alone(text: str, *, named: bool = False) -> ExtractedAnswer | None:
    """A term, perhaps with its unit (and what it is called, if `named`), and nothing else."""
    text = text.strip()
    text = text if text.endswith("...") else text.rstrip(".。!")
    bounded = text
    while bound := _BOUND_LED.match(bounded):
        bounded = bounded[bound.end() :].strip()
    if bounded != text and _number_alone(bounded):
        return text_answer(text)
    value = parse_number(text)
    if value is not None:
        return ExtractedAnswer(number_key(value), text)
    found = _candidates(text)
    if len(found) > 1 and _all_of(text, found):
        return text_answer(text)
    if len(found) != 1:
        return None
    lead = text[: found[0].start]
    if named:
        lead = re.split("[=:]", lead)[-1]
    alone = (
        _LEAD.fullmatch(lead) and _is_free(text, found[0]) and _UNIT.fullmatch(text, found[0].end)
    )
    return _shown(text, found[0]) if alone else None


def _all_of(text: str, found: Sequence[Term]) -> bool:
    """Whether the terms and their units are all there is: 5 apples and 3 pears, 1 in 4."""
    gaps = [text[a.end : b.start] for a, b in pairwise(found)]
    listed = found[0].start == 0 and all(_JOINT.fullmatch(gap) for gap in gaps)
    listed = listed or all(_NAMED.fullmatch(g) for g in (text[: found[0].start], *gaps))
    return bool(listed and _UNIT.fullmatch(text, found[-1].end))


def _number_in(text: str) -> ExtractedAnswer | None:
    found = _last_meant(text, _candidates(text))
    return None if found is None else _shown(text, found)


def _shown(text: str, found: Term) -> ExtractedAnswer:
    whole, unit = text[found.start : found.end], UNIT_WORD.match(text, found.end)
    if unit and all(found.key != t.key for by in (False, True) for t in terms(whole, spelled=by)):
        whole += unit[0]  # 2 hours 30 minutes: without it another number
    return ExtractedAnswer(found.key, whole.strip())


def _tidy(folded: str) -> str:
    """Folded text without LaTeX, bullets and asides to a calculator, every sign at its number."""
    text = strip_latex(_CALCULATOR.sub("", folded)).strip()
    if "\n" in text:
        text = re.sub(r"^[ ]*[-+•][ ]+", "", text, flags=re.MULTILINE)
    for pattern, written in _WRITTEN:
        text = pattern.sub(written, text)
    return text


def _last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} of `text`, braces balanced."""
    for match in list(_BOXED.finditer(text))[:-4:-1]:  # a cut-off box has whole ones before it
        rest = text[match.end() :]
        if not rest.startswith("{"):
            word = re.match(r"[^\s$.,]+", rest)
            return word[0] if word else None
        depth = 0
        for index, char in enumerate(rest):
            depth += (char == "{") - (char == "}")
            if depth == 0:
                return rest[1:index]
    return None


# -- which of the terms in a text is meant ---------------------------------------------

_LABEL = re.compile(
    rf"(?:\b(?:{_ROLES['labels']}|eq\.|no\.)\s*|#|第|步骤\s*|方法\s*|星期|周|礼拜)$", re.I
)
_LIST_ITEM = re.compile(r"^\s*\d{1,2}[.)、](?=\s*\S)(?!\d)", re.MULTILINE)
_OPERATOR_BEFORE = re.compile(r"(?:(?:[*/^×÷+√·±]|乘以?|除以)\s*\(?\s*|[\w)\]}%]\s*-\s*)$")
_OPERATOR_AFTER = re.compile(
    r"\s?[a-z]{1,6}\s?(?:x|×|by)\s?[0-9]|[\u4e00-\u9fff]{0,2}\s*(?:乘|除以|[*^×÷·±]|\+|/\s*[\d(]|-\s*[\d($]|=.*\d)"
)
_BOUND_BEFORE = re.compile(
    rf"(?:\b(?:{_ROLES['comparatives']}) than(?: or equal to)?|\b(?:{_ROLES['bounds_before']})"
    rf"|{_ROLES['bounds_before_chinese']}|[一二三四五六七八九]成|\|(?! )|[⌊⌈]|[<>≤≥≠])"
    r"\s*(?:[$€£¥]\s*)?$",
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
    rf"\b(?:{_ROLES['asides']})\b|{_ROLES['asides_chinese']}|(?<=[,，])因"
    r"|\b(?:in|within|over|every|during)\b"
    r"(?=\s+\S+\s+(?:second|minute|hour|day|week|month|year)s?\b)",
    re.IGNORECASE,
)
# What a later statement of the sentence begins with.
_SO = re.compile(r"[,;]?\s*\b(?:so|thus|therefore|hence|then|or)\b|所以|因此|那么|也就是", re.I)
_SENTENCE_END = re.compile(r"[。!?;\n]+|\.(?=\s|$)")
_BRACKETS = re.compile(r"\([^()]*\)")
_MAX_SPELLED_CHARS = 240
"""Longer texts without digits are explanations: "the two variables" is not an answer."""


def _candidates(text: str) -> list[Term]:
    """The terms of a text; numbers in words count where there are no digits."""
    return terms(text, spelled=not re.search("[0-9]", text) and len(text) <= _MAX_SPELLED_CHARS)


def _last_meant(text: str, found: Sequence[Term]) -> Term | None:
    """The term that is meant in the last sentence that has any that may be."""
    labels = [m.span() for m in _LIST_ITEM.finditer(text)]
    labels = labels if len(labels) > 1 else []  # one "12." is an answer, not a list
    free = [t for t in found if _is_free(text, t) and not _touches(t, labels)]
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


def _is_free(text: str, term: Term) -> bool:
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
