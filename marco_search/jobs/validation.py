"""Validation of input, and the messages for invalid input.

Text that passes can be stored by Postgres (no NUL, no lone surrogate) and is not blank.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from marco_search.errors import InvalidJob

WHOLE = "job"
"""The field name for errors about the value as a whole."""
_LONGEST_NAME = 60  # of a field or a value that a message repeats
_DEEPEST = 100  # levels of JSON: Python parses some hundred, fewer in a deep call stack
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SURROGATE = (
    "not valid Unicode: a lone surrogate{}; decode the source as UTF-8 before submitting it"
)
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object of names and values",
    "model_type": "an object of names and values",
    "model_attributes_type": "an object of names and values",
}


class Described(BaseModel):
    """A model whose docstring, and so `help()`, ends with the descriptions of its fields."""

    @classmethod
    def __pydantic_init_subclass__(cls, **named: Any) -> None:
        super().__pydantic_init_subclass__(**named)
        fields = [f"{n}: {f.description}" for n, f in cls.model_fields.items() if f.description]
        cls.__doc__ = "\n    ".join([f"{(cls.__doc__ or '').rstrip()}\n\n    Fields:", *fields])


class Input(Described):
    """Base of input models: frozen and strict; invalid input raises InvalidJob."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            first, *rest = error.errors(include_url=False)
            field, reason = _field(first), explain(first, list(cls.model_fields))
            # Further wrong fields are named after the first.
            others = [name for name in dict.fromkeys(map(_field, rest)) if name != field]
            if others:
                reason += f" (also wrong: {', '.join(others[:5])})"
            raise InvalidJob(field, reason) from None
        except InvalidJob as error:
            # SearchOptions is the only model inside another one, under this name.
            field = "options" if error.field == WHOLE else f"options.{error.field}"
            raise InvalidJob(field, error.reason) from None


def _field(error: ErrorDetails) -> str:
    within = [error["ctx"]["within"]] if error["type"] == _WITHIN else []
    return ".".join(shortened(str(part)) for part in (*error["loc"], *within)) or WHOLE


_WITHIN = "within"


def within(name: str, reason: str) -> PydanticCustomError:
    """The error of a field's validator about a part of the field, which has this name."""
    # Braces would be read as a template.
    return PydanticCustomError(_WITHIN, "{reason}", {"within": name, "reason": reason})


def explain(error: ErrorDetails, fields: Sequence[str] = ()) -> str:
    """The message for an invalid value. `fields`: the known ones of its model."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        bound = context[name]
        bound = int(bound) if bound == int(bound) else bound
        return f"must be {words} {bound:,}, not {shown(value)}"
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}, not {shown(value)}"
    if kind == "missing":
        names = value if isinstance(value, Mapping) else ()
        unknown = [str(name) for name in names if name not in fields]
        return f"missing; it is required{hint(error['loc'][-1], unknown)}"
    if kind == "extra_forbidden":
        meant = hint(error["loc"][-1], fields) or "."
        return f"unknown field{meant}" + (f" Known fields: {', '.join(fields)}" if fields else "")
    if kind == "too_long":
        return f"must have at most {context['max_length']:,} entries"
    if kind in ("literal_error", "enum"):  # its "expected" is "'a', 'b' or 'c'"
        words = context["expected"].replace(" or ", ", ")
        return _unknown(value, [word.strip(" '") for word in words.split(",")])
    if kind == "string_unicode":
        return _SURROGATE.format("")
    return error["msg"].removeprefix("Value error, ")


def _unknown(value: object, names: Sequence[str]) -> str:
    return f"unknown value {shown(value)}; use one of: {', '.join(names)}{hint(value, names)}"


def one_of(names: Callable[[], Iterable[str]]) -> AfterValidator:
    """A validator that a text is one of a registry's names."""

    def check(value: str) -> str:
        if value not in names():
            raise ValueError(_unknown(value, list(names())))
        return value

    return AfterValidator(check)


def spelt(pattern: str, words: str) -> AfterValidator:
    """A check that a text has this pattern; `words` say what it must be."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"must be {words}, not {shown(text)}")
        return text

    return AfterValidator(check)


def at_most(limit: int, *, empty: bool = False) -> AfterValidator:
    """A validator that a text can be used and has at most `limit` characters.

    `empty`: an empty text is allowed, too.
    """

    def check(text: str) -> str:
        problem = None if empty and not text else flaw(text, limit)
        if problem is not None:
            # Braces would be read as a template.
            raise PydanticCustomError("text", "{problem}", {"problem": problem})
        return text

    return AfterValidator(check)


def flaw(text: str, limit: int) -> str | None:
    """Why `text` can't be used (blank, longer than `limit` characters, NUL, lone surrogate).

    None if it can.
    """
    if len(text) > limit:
        return f"too long: {len(text):,} characters, at most {limit:,} are allowed"
    if problem := unstorable(text):
        return problem
    if not any(unicodedata.category(c)[0] not in "ZC" for c in text):
        return "empty or blank; give some text"
    return None


def unstorable(text: str) -> str | None:
    """Why Postgres can't store `text` (NUL, lone surrogate); None if it can."""
    if "\x00" in text:
        return f"holds a NUL character at position {text.index(chr(0))}; remove it"
    lone = _UNSTORABLE.search(text)
    return lone and _SURROGATE.format(f" at position {lone.start()}")


def storable(text: str) -> str:
    """`text` with U+FFFD for what Postgres can't store."""
    return _UNSTORABLE.sub("\ufffd", text)


def texts(value: object) -> Iterator[str]:
    """Every text in a JSON value, names included."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            left += [*one, *one.values()]
        elif isinstance(one, list | tuple):
            left += one


def unstorable_in(value: object) -> str | None:
    """Why Postgres can't store a text of a JSON value; None if it can."""
    return next(filter(None, map(unstorable, texts(value))), None)


def as_json(value: object, *, allow_nan: bool = False) -> str:
    """`value` as JSON. Raises ValueError for what JSON can't express, or is nested too deep."""
    try:
        if _is_deeper(value, _DEEPEST):
            raise ValueError
        return json.dumps(value, allow_nan=allow_nan)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(
            "holds something that JSON can't express: only names, lists, texts, finite numbers, "
            f"true, false and null are allowed, {_DEEPEST} within each other at most"
        ) from None


def _is_deeper(value: object, levels: int) -> bool:
    """Whether its lists and objects are nested deeper than this many levels."""
    within = [value]
    for _ in range(levels + 1):
        outer = [one for one in within if isinstance(one, dict | list | tuple)]
        inner = chain(*(one.values() if isinstance(one, dict) else one for one in outer))
        within = list({id(one): one for one in inner}.values())  # circular references only once
    return any(isinstance(one, dict | list | tuple) for one in outer)


def decode_utf8(data: bytes, field: str) -> str:
    """`data` as text, without a leading byte order mark.

    Raises InvalidJob naming `field` and the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InvalidJob(
            field,
            f"not valid UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "save the file as UTF-8",
        ) from None


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The closest entry of `known` to `word`, if any is close."""
    # difflib takes seconds for a megabyte.
    if not isinstance(word, str) or len(word) > _LONGEST_NAME:
        return None
    close = difflib.get_close_matches(word.casefold(), list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def hint(word: object, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or nothing, to end a message with."""
    close = nearest(word, known)
    return f"; did you mean {close!r}?" if close else ""


def shown(value: object) -> str:
    """`value` for a message: its repr, shortened."""
    if isinstance(value, str | bytes):
        value = value[: _LONGEST_NAME + 1]
    try:
        return shortened(repr(value) if not isinstance(value, str) else ascii(value))
    except Exception:
        # Whole numbers of thousands of digits, lists within lists, and objects of any class.
        return f"a value of type {type(value).__name__}"


def shortened(name: str) -> str:
    """`name` for a message: escaped if not printable, shortened if too long."""
    name = name[: _LONGEST_NAME + 1]
    if not name.isprintable():
        name = ascii(name)[1:-1]
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


_FORMATS: dict[bytes, tuple[str, str | None]] = {
    b"\x1f\x8b": ("compressed by gzip", "gzip -dc"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "zstd -dc"),
    b"PK\x03\x04": ("a zip archive", "unzip -p"),
    b"BZh": ("compressed by bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\0": ("compressed by xz", "xz -dc"),
    b"PAR1": ("a Parquet file", None),
    b"\xff\xfe": ("UTF-16", "iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16", "iconv -f UTF-16 -t UTF-8"),
}
"""First bytes of files that are not UTF-8 text."""


def not_text(begin: bytes) -> tuple[str, str | None] | None:
    """The format of a file with this beginning, if not UTF-8 text, and how to convert it."""
    for mark, found in _FORMATS.items():
        if begin.startswith(mark):
            return found
    # Without a mark every other byte of ASCII is a zero.
    if b"\0" in begin[:2]:
        return "UTF-16", "iconv -f UTF-16 -t UTF-8"
    if b"\0" in begin[:4096]:
        return "a binary file", None
    return None


def another_format(begin: bytes) -> tuple[str, str | None] | None:
    """The format of a file with this beginning, if not JSON Lines, and how to convert it."""
    if found := not_text(begin):
        return found
    text = begin.removeprefix(b"\xef\xbb\xbf").lstrip()[:2].rstrip()
    if text.startswith(b"["):
        return "a JSON array", "jq -c '.[]'"
    first, ended, _ = begin.partition(b"\n")
    if text == b"{" and ended and not first.rstrip().endswith(b"}"):
        return "an object over several lines", "jq -c ."
    return None
