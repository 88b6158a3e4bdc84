"""The rules that a sample must pass: those by which Open-O1's thoughts were filtered, as data.

Marco-o1 (section 3) took 45,125 samples of Open-O1 by heuristics that were not published; these
are the usual ones. Each is a pure function of a sample that says why it is left out, or None.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from marco_search.errors import InputError
from marco_search.learning.samples import Sample
from marco_search.profiles import language_of
from marco_search.search.branches import MARCO_O1, TurnFormat
from marco_search.text import CONTROL

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\\[a-zA-Z]+|\$[^$]*\$", re.DOTALL)
_LETTERS_TO_JUDGE = 12  # below that, a text has no language: "x = 3", "B"
# UTF-8 read as Latin-1 or Windows-1252, and the byte order mark in it.
_MOJIBAKE = re.compile("[\u00c2-\u00c3][\u0080-\u00bf]|\u00e2[\u0080\u20ac]|\u00ef\u00bb\u00bf")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
_LOOP = 10  # words of a run that is looked for again


@dataclass(frozen=True)
class Limits:
    """Numbers of the rules; lengths are in characters."""

    least_prompt: int = 1
    most_prompt: int = 16_000
    least_thought: int = 20
    most_response: int = 32_000
    foreign: float = 0.3
    """Most letters of another script than the prompt's, of all letters of the response."""
    repeated: float = 0.3
    """Most of a response that may be lines, or runs of ten words, that stood in it before."""


@dataclass(frozen=True)
class Rule:
    """Why rows are left out: `reason` gives it for a row, or None."""

    reason: Callable[[Any], str | None]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def first_reason(rules: Mapping[str, Rule], row: Any) -> tuple[str, str] | None:
    """The first rule that leaves a row out, and its reason."""
    found = ((name, rule.reason(row)) for name, rule in rules.items())
    return next(((name, reason) for name, reason in found if reason), None)


def parameters(rules: Mapping[str, Rule]) -> dict[str, dict[str, Any]]:
    """What a manifest says of rules."""
    return {name: dict(rule.parameters) for name, rule in rules.items()}


def encoding(sample: Sample) -> str | None:
    """Characters that were lost, or are those of another encoding."""
    for number, message in enumerate(sample.messages, start=1):
        text = message["content"]
        for pattern, what in ((_LOST, "a lost character"), (_MOJIBAKE, "UTF-8 read as Latin-1")):
            if found := pattern.search(text):
                around = text[max(0, found.start() - 10) : found.end() + 10]
                return f"message {number} has {what}: {around!r}"
    return None


_LOST = re.compile(f"\ufffd|(?![\u200e\u200f\u2028\u2029\r])(?:{CONTROL.pattern})")
"""The replacement character and control characters; marks of direction and line ends are text."""


def length(sample: Sample, limits: Limits = Limits()) -> str | None:
    """Prompts and responses that are too short or too long."""
    prompt = sum(len(m["content"].strip()) for m in sample.prompt if m["role"] == "user")
    if not limits.least_prompt <= prompt <= limits.most_prompt:
        return f"the prompt has {prompt:,} characters"
    if len(sample.response) > limits.most_response:
        return f"the response has {len(sample.response):,} characters"
    return None if sample.response.strip() else "the response is empty"


def tags(sample: Sample, turn: TurnFormat = MARCO_O1) -> str | None:
    """Tags that are missing, doubled, misspelt or out of order, and text outside of them."""
    text, at = sample.response.strip(), 0
    for tag in _tags(turn):
        name = re.escape(tag.strip("</>"))
        slash = "/" if tag.startswith("</") else ""
        spellings = re.findall(rf"<\s*\\?{slash}\s*{name}\s*(?:>|\n|\Z)", text, re.IGNORECASE)
        if spellings != [tag]:
            found = "missing" if not spellings else f"written as {', '.join(spellings)}"
            return f"{tag} is {found}"
        place = text.find(tag)
        if place < at:
            return f"{tag} is out of order"
        if tag in (turn.thought, turn.output) and text[at:place].strip():
            return f"text before {tag}: {text[at:place].strip()[:40]!r}"
        at = place + len(tag)
    return (
        f"text after the last tag: {text[at:].strip()[:40]!r}"
        if turn.end_of_output and (text[at:].strip())
        else None
    )


def turn_of(thought: str, output: str) -> TurnFormat:
    """The format with these opening tags, such as "<think>". Raises InputError for others."""
    for tag in (thought, output):
        if not re.fullmatch(r"<\w[\w-]*>", tag):
            raise InputError(f"{tag}: must be an opening tag, such as <think>")
    ends = [tag.replace("<", "</") for tag in (thought, output)]
    return replace(
        MARCO_O1, thought=thought, end_of_thought=ends[0], output=output, end_of_output=ends[1]
    )


def _tags(turn: TurnFormat) -> list[str]:
    tags = (turn.thought, turn.end_of_thought, turn.output, turn.end_of_output)
    return [tag for tag in tags if tag]


def parts(response: str, turn: TurnFormat = MARCO_O1) -> tuple[str, str]:
    """Thought and output of a response; without tags the whole of it is both."""
    thought, output = response, response
    if turn.end_of_thought:
        thought, _, output = response.partition(turn.end_of_thought)
        thought = thought.replace(turn.thought, "", 1) if turn.thought else thought
    for tag in (turn.output, turn.end_of_output):
        output = output.replace(tag, "", 1) if tag else output
    return thought.strip(), output.strip()


def answer(sample: Sample, turn: TurnFormat = MARCO_O1) -> str | None:
    """An output without a letter or a digit."""
    output = parts(sample.response, turn)[1]
    return None if re.search(r"[^\W_]", output) else f"the output has no answer: {output[:40]!r}"


def thought(sample: Sample, turn: TurnFormat = MARCO_O1, limits: Limits = Limits()) -> str | None:
    """A thought that is too short to be one."""
    if not turn.end_of_thought:
        return None
    found = len(parts(sample.response, turn)[0])
    return f"the thought has {found} characters" if found < limits.least_thought else None


def language(sample: Sample, turn: TurnFormat = MARCO_O1, limits: Limits = Limits()) -> str | None:
    """An output in another language than the prompt's, and a third script anywhere.

    By script, so German is not told from English. Thoughts may be English, as Marco-o1's are.
    Code and formulas do not count, and what stands in the prompt may stand in the response.
    """
    prompt = " ".join(message["content"] for message in sample.prompt)
    asked, scripts = language_of(prompt), _scripts(prompt)
    for name, text, more in zip(
        ("thought", "output"), parts(sample.response, turn), ({"en"}, set()), strict=True
    ):
        letters = _scripts(text)
        total = sum(letters.values())
        others = {
            s: n for s, n in letters.items() if s != asked and s not in scripts and s not in more
        }
        if total >= _LETTERS_TO_JUDGE and sum(others.values()) > limits.foreign * total:
            script = max(others, key=others.__getitem__)
            return f"asked in {asked}, and {others[script] / total:.0%} of the {name} is {script}"
    return None


def _scripts(text: str) -> Counter[str]:
    """How many letters of each script, by the language that has it."""
    found: Counter[str] = Counter()
    for letter, count in Counter(_CODE.sub(" ", text)).items():
        if letter.isalpha():
            found[language_of(letter)] += count
    return found


def repetition(sample: Sample, limits: Limits = Limits()) -> str | None:
    """Loops: the same line, or the same ten words, again and again."""
    lines = [line.strip() for line in sample.response.splitlines() if len(line.strip()) >= 20]
    words = _WORD.findall(sample.response.casefold())
    runs = [tuple(words[i : i + _LOOP]) for i in range(len(words) - _LOOP + 1)]
    for what, found in (("lines", lines), (f"runs of {_LOOP} words", runs)):
        share = 1 - len(set(found)) / len(found) if found else 0
        if len(found) >= 5 and share > limits.repeated:
            return f"{share:.0%} of its {what} stood in it before"
    return None


def instructions(limits: Limits = Limits()) -> dict[str, Rule]:
    """The rules for any conversation."""
    numbers = asdict(limits)
    own = {name: numbers[name] for name in ("least_prompt", "most_prompt", "most_response")}
    return {
        "encoding": Rule(encoding),
        "length": Rule(partial(length, limits=limits), own),
        "repetition": Rule(
            partial(repetition, limits=limits), {"repeated": limits.repeated, "run": _LOOP}
        ),
    }


def thoughts(turn: TurnFormat = MARCO_O1, limits: Limits = Limits()) -> dict[str, Rule]:
    """The rules for a thought and an output after it, in a profile's tags."""
    return {
        **instructions(limits),
        "tags": Rule(partial(tags, turn=turn), {"tags": _tags(turn)}),
        "answer": Rule(partial(answer, turn=turn)),
        "thought": Rule(
            partial(thought, turn=turn, limits=limits), {"least_thought": limits.least_thought}
        ),
        "language": Rule(partial(language, turn=turn, limits=limits), {"foreign": limits.foreign}),
    }
