"""Brings the many ways of writing the same sign to one: the first step of normalisation.

Digits, punctuation and white space of all scripts become plain ones, LaTeX becomes plain
text. Line breaks stay. What is folded is for comparing, not for showing.
"""

from __future__ import annotations

import re
import unicodedata

from marco_search.kinds.answers import WORDS
from marco_search.kinds.base import ExtractedAnswer

_BEFORE_FRACTION = re.compile(r"(?<=\d)(?=[¼½¾⁄⅐-⅟↉])")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_CIRCLED_RUN = re.compile("[①-⑳](?:[、,，和]?[①-⑳])+")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_SIGNS = str.maketrans({char: sign for sign, alike in WORDS["signs"].items() for char in alike})

_TEXT_COMMAND = re.compile(r"\\(?:text|math|mbox|operatorname|num)[a-z]*\s*\{([^{}]*)\}")
_FRACTION = re.compile(
    r"(?:(\d)\s*)?\\(?:[dtcs]|nice)?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))"
)
_OVER = re.compile(r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}")
_ROOT = re.compile(r"\\sqrt\s*(\[[^\[\]{}]*\])?\s*(?:\{([^{}]*)\}|(\d))")
_BINOMIAL = re.compile(r"\\[dt]?binom\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_EXPONENT = re.compile(r"\^\s*\{([^{}]*)\}")
# Pandoc's rule tells "$x$" from "$5 and $6".
_MATHS = re.compile(r"(?<!\\)\$(?!\s)([^$\n]{1,500}?)(?<![\s\\])\$(?![0-9])")
_NUMBER = re.compile(r"\d[\d.,]*")
_SIMPLE = re.compile(r"\d+|[A-Za-z]|\\pi|√\(\d+\)")
_SIMPLE_TOP = re.compile(rf"\d*(?:{_SIMPLE.pattern})")
_AT_END = re.compile(r"\s*(?:$|[$.,;=)\]}]|\\(?:right|[)\],; ]))")  # no factor follows
_COMMANDS = {name: sign for sign, names in WORDS["latex"].items() for name in names.split()}
_COMMAND = re.compile(r"\\([a-zA-Z]+)")


def normalize_unicode(text: str) -> str:
    """`text` in compatibility form (NFKC) with one kind of digit, dash, quote and space.

    A vulgar fraction stays apart from the digit before it (1½ is "1 1/2", not 11/2) and a
    superscript is marked (m² is "m^2"), as is a subscript (x₁ is "x_1").
    """
    text = _BEFORE_FRACTION.sub(" ", text)
    text = _SUPERSCRIPT_RUN.sub(r"^\g<0>", text)
    text = _SUBSCRIPT_RUN.sub(r"_\g<0>", text)
    text = _CIRCLED_RUN.sub(lambda m: ", ".join(re.findall("[①-⑳]", m[0])), text)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    folded = []
    for char in text:
        if char.isdecimal():
            char = str(unicodedata.decimal(char))
        elif char != "\n" and char.isspace():
            char = " "
        elif unicodedata.category(char) in ("Cf", "Cc") and char != "\n":
            continue
        folded.append(char)
    return "".join(folded)


def strip_latex(text: str) -> str:
    """Folded text without LaTeX: `\\frac{3}{4}` is "3/4", `1{,}234` is "1,234", `$x$` is "x"."""
    text = re.sub(r"(?<=[0-9])\*\*(?=[-(0-9])", "^", text)
    text = re.sub("!=|=/=", "≠", text)
    text = _MATHS.sub(r"\1", text.replace("$$", " ").replace("**", ""))
    if "\\" in text or "{" in text:
        text = text.replace("{,}", ",").replace("{:}", ":").replace("\\,", "").replace("\\!", "")
        text = re.sub(r"\\([%$#&_{} ])", r"\1", text)
        text = re.sub(r"\\[()\[\];:]", " ", text)
        text = re.sub(r"(?<=[0-9.])\\(?:overline|bar|dot) ?\{([0-9]+)\}", r"(\1)", text)
        text = _unwrapped(text)
        text = _COMMAND.sub(lambda m: _COMMANDS.get(m[1], f"{m[1]} "), text)
        text = text.replace("^°", "°")
    return text


def _as_slash(match: re.Match[str]) -> str:
    before = match[1]
    top, bottom = match[2] or match[3] or "", match[4] or match[5] or ""
    # 1\frac{1}{2} is a mixed number; \frac{n}{2} needs its brackets.
    apart = f"{before} " if before else ""
    top, bottom = top.strip(), bottom.strip()
    sign = "-" if not before and (top[:1] == "-") != (bottom[:1] == "-") else ""
    if _NUMBER.fullmatch(top.lstrip("-")) and _NUMBER.fullmatch(bottom.lstrip("-")):
        return f"{apart}{sign}{top.lstrip('-')}/{bottom.lstrip('-')}"
    simple = _SIMPLE_TOP.fullmatch(top) and _SIMPLE.fullmatch(bottom)
    if simple and not before and _AT_END.match(match.string, match.end()):
        return f"{top}/{bottom}"
    return f"{apart}({top})/({bottom})"


def _unwrapped(text: str) -> str:
    # Innermost braces first. The bound keeps hostile nesting from taking quadratic time.
    for _ in range(8):
        before = text
        text = _TEXT_COMMAND.sub(lambda m: f" {m[1].replace('~', ' ')} ", text)
        text = _ROOT.sub(lambda m: f"√{m[1] or ''}({m[2] or m[3] or ''})", text)
        text = _EXPONENT.sub(_raised, text)
        text = _BINOMIAL.sub(r"C(\1\2,\3\4)", re.sub(r"_\{(\w+)\}", r"_\1", text))
        text = _FRACTION.sub(_as_slash, _OVER.sub(r"\\frac{\1}{\2}", text))
        if text == before:
            break
    return text


def _raised(match: re.Match[str]) -> str:
    power = match[1].strip()
    return f"^{power}" if re.fullmatch(r"[-+]?\w+|\\[a-z]+|°", power) else f"^({power})"


def text_key(text: str) -> str:
    """The form in which two texts count as the same answer.

    Folded, without LaTeX, case, leading article, quotation marks and outer punctuation, and
    with one way of spacing.
    """
    key = " ".join(strip_latex(normalize_unicode(text)).replace('"', " ").split()).casefold()
    key = re.sub(r"\s*([=+*/^<>|×÷·∪∩≤≥≈])\s*", r"\1", key)
    key = re.sub(r"([(\[{])\s+|\s+([)\]}])", r"\1\2", key)
    key = re.sub(r"\s*(?!(?<=[0-9]),[0-9])([,;:!?])\s*", r"\1 ", key)
    # "2, 300" is not "2,300".
    key = re.sub(r"([,:]) (?=[-+]?[\d∞π(\[])(?!(?<=\d, )\d{3}(?!\d))", r"\1", key)
    key = re.sub(r"(?<=[\u2e80-\uffff]) (?=[\u2e80-\uffff])", "", key)  # between Han characters
    key = key.strip(_OUTER)
    key = re.sub(r"^(?:an?|the)\s+(?=\S)", "", key)
    return key.strip(_OUTER)


_OUTER = " \t\n.,;:!?。、·…\"'*_`~#"


def text_answer(output: str) -> ExtractedAnswer | None:
    """The whole of an output as an answer; None if nothing of it counts."""
    key = text_key(output)
    return ExtractedAnswer(key, output.strip()) if key else None
