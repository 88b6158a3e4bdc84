"""Answers as comparable values: numbers, units, terms, text."""

import tomllib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from importlib.resources import files
from typing import Any

WORDS: dict[str, Any] = tomllib.loads((files(__name__) / "words.toml").read_text("utf-8"))
"""The word lists of words.toml."""


def worths(table: Mapping[str, str]) -> dict[str, Fraction]:
    """What each word of a table in words.toml is worth: {"3": "third thirds"} is 3 for both."""
    return {word: Fraction(worth) for worth, words in table.items() for word in words.split()}


def alternatives(words: Iterable[str]) -> str:
    """A pattern of any of `words`, the longest first."""
    return "|".join(sorted(words, key=len, reverse=True))
