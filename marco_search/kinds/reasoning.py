"""Reasoning jobs: one right answer, read out of the Output part.

The answer is looked for in this order: \\boxed{...}; after "the answer is", "答案是", "####"
or the like (the last of them); an option letter that begins the output ("(D) 27 sec"); a
leading yes or no; the only bold phrase; the first line, if it is a number with its unit;
the last number meant as a result (marco_search.kinds.candidates); spelled-out numbers where
there are no digits; else the whole output as text. Code is always taken as text.
"""

from __future__ import annotations

import re

from marco_search.jobs import ReasoningJob
from marco_search.kinds.base import ExtractedAnswer, Kind
from marco_search.kinds.candidates import (
    Candidate,
    digit_candidates,
    last_meant,
    spelled_candidates,
)
from marco_search.kinds.fold import fold, plain, text_key
from marco_search.kinds.numbers import number_key, parse_number

_BOXED = re.compile(r"\\f?boxed\s*")
_MARKER = re.compile(
    r"(?:\b(?<!no )(?:answer|result|solution|option|choice)\b(?: to [^.\n]{1,60}?)?"
    r"\s*(?:is|was|are|=|:|equals|(?:should|must|would) be)(?: (?:that|therefore|thus))?"
    r"|(?:答案|结果|选项|答)\s*(?:就?应?该?是|应?为|等于|:|=)|####)[\s:]*",
    re.IGNORECASE,
)
# "I," is a pronoun and "A:" as often the answer to "Q:" as an option.
_OPTION = re.compile(
    r"\(?([A-J])\)(?=\W|$)|([A-HJ])(?:[.、,](?=\s|$)|\s*$)|([B-HJ]):(?=\s)|\(([a-j])\)(?=\s|$)"
)
_OPTION_LED = re.compile(r"(?:option|choice|选项?|应选|故选)\s*\(?([A-J])\)?(?![A-Za-z])", re.I)
_YES_NO = {
    "yes": "yes", "是": "yes", "是的": "yes", "对": "yes", "对的": "yes",
    "no": "no", "否": "no", "不是": "no", "不": "no", "不对": "no",
    "true": "true", "正确": "true", "false": "false", "错误": "false",
}  # fmt: skip
_FIRST_WORD = re.compile(r"\W*([A-Za-z]+|[\u4e00-\u9fff]+)(?=\s*(?:[,.;:!。*]|- |$))", re.M)
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*(?!\s*:)")
_LEAD = re.compile(r"(?:about|approximately|exactly|roughly|约|大约|共|共有|一共|总共|=|≈|\s)*")
_UNIT = re.compile(r"\s*(?:[^\W\d_]+[\s/]*){0,4}[.。!]?\s*")
_MAX_CHARS = 8_000
"""Of a longer output only the end is read: that is where the result stands."""
_MAX_SPELLED_CHARS = 240
"""Longer outputs without digits are explanations: "the two variables" is no answer."""


class Reasoning(Kind[ReasoningJob]):
    """Numbers are compared by exact value, everything else by normalised text."""

    name = "reasoning"
    answer_width = 1  # what follows a finished calculation is settled
    one_answer = True

    def user_turn(self, job: ReasoningJob) -> str:
        """The question as it is."""
        return job.question

    def read(self, output: str) -> ExtractedAnswer | None:
        """The answer in an Output part, by the rules above."""
        if "```" in output:
            return _as_text(output)
        if len(output) > _MAX_CHARS:
            output = output[-_MAX_CHARS:]
        boxed = _last_boxed(output)
        if boxed is not None:
            return _short(boxed)
        folded = fold(output)
        markers = list(_MARKER.finditer(folded))
        if markers:
            after = folded[markers[-1].end() :]
            if after.strip(" \n*.。"):
                return _sentence(after)
        return _whole(output, folded)


def _whole(output: str, folded: str) -> ExtractedAnswer | None:
    word = _choice(folded)
    if word is not None:
        return word
    bold = list(dict.fromkeys(b.strip() for b in _BOLD.findall(folded) if b.strip()[-1:] != ":"))
    if len(bold) == 1:
        return _short(bold[0])
    text = plain(folded).strip()
    first_line = _number_alone(text.partition("\n")[0])
    if first_line is not None:
        return first_line
    return _number_in(text) or _as_text(output)


def _sentence(text: str) -> ExtractedAnswer | None:
    """The answer at the beginning of what follows "the answer is"."""
    text = plain(text).strip()
    word = _choice(text)
    if word is not None:
        return word
    first = re.split(r"[。!?;\n]|\.(?=\s|$)", text, maxsplit=1)[0]
    candidates = digit_candidates(first)
    lead = _LEAD.match(first)
    if lead and candidates and candidates[0].start <= lead.end() and candidates[0].free:
        return _shown(first, candidates[0])
    alone = _number_alone(first)
    return alone or _number_in(first) or _as_text(first)


def _short(text: str) -> ExtractedAnswer | None:
    """The answer in a phrase that holds nothing else: a box, a bold phrase."""
    folded = plain(fold(text)).strip()
    word = _choice(folded)
    if word is not None:
        return word
    right = folded.rpartition("=")[2].strip()
    candidates = digit_candidates(right)
    if len(candidates) == 1 and candidates[0].free:
        return _shown(right, candidates[0])
    return (None if candidates else _number_alone(right)) or _as_text(text)


def _choice(text: str) -> ExtractedAnswer | None:
    """An option letter, yes or no at the beginning of `text`."""
    bare = text.lstrip(" \n*\"'")
    option = _OPTION.match(bare) or _OPTION_LED.match(bare)
    if option:
        letter = next(g for g in option.groups() if g).upper()
        return ExtractedAnswer(letter, letter)
    word = _FIRST_WORD.match(bare)
    known = _YES_NO.get(word[1].casefold()) if word else None
    return ExtractedAnswer(known, word[1]) if word and known else None


def _number_alone(text: str) -> ExtractedAnswer | None:
    """A number, perhaps with its unit, and nothing else."""
    text = text.strip().rstrip(".。!")
    value = parse_number(text)
    if value is not None:
        return ExtractedAnswer(number_key(value), text)
    candidates = digit_candidates(text)
    if len(candidates) != 1:
        return None
    only = candidates[0]
    alone = only.free and only.start == 0 and _UNIT.fullmatch(text, only.end)
    return _shown(text, only) if alone else None


def _number_in(text: str) -> ExtractedAnswer | None:
    candidates = digit_candidates(text)
    if candidates:
        found = last_meant(text, candidates)
    elif len(text) <= _MAX_SPELLED_CHARS:
        found = last_meant(text, spelled_candidates(text))
    else:
        found = None
    return None if found is None else _shown(text, found)


def _shown(text: str, found: Candidate) -> ExtractedAnswer:
    return ExtractedAnswer(found.key, text[found.start : found.end].strip())


def _as_text(text: str) -> ExtractedAnswer | None:
    key = text_key(text)
    return ExtractedAnswer(key, text.strip()) if key else None


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
