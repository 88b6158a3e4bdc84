"""Turns what pydantic says about a bad job into words that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from marco_search.errors import InvalidJob
from marco_search.jobs.text import hint, shortened, shown

WHOLE = "job"
"""The field named where the value as a whole is wrong."""
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "an object of names and values",
    "model_type": "an object of names and values",
    "model_attributes_type": "an object of names and values",
}


def invalid_job(model: type[BaseModel], error: ValidationError) -> InvalidJob:
    """InvalidJob for the first thing that is wrong; further wrong fields are named after it."""
    first, *rest = error.errors(include_url=False)
    field = _field(first)
    reason = _reason(model, first)
    others = [name for name in dict.fromkeys(map(_field, rest)) if name != field]
    if others:
        reason += f" (also wrong: {', '.join(others[:5])})"
    return InvalidJob(field, reason)


def _field(error: ErrorDetails) -> str:
    return ".".join(shortened(str(part)) for part in error["loc"]) or WHOLE


def _reason(model: type[BaseModel], error: ErrorDetails) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        bound = context[name]
        bound = int(bound) if bound == int(bound) else bound
        return f"must be {words} {bound:,}, not {shown(value)}"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, not {shown(value)}"
    explain = _BY_TYPE.get(kind)
    if explain is not None:
        return explain(model, error)
    return error["msg"].removeprefix("Value error, ")


def _missing(model: type[BaseModel], error: ErrorDetails) -> str:
    given = error["input"]
    names = [name for name in given if name not in model.model_fields] if given else []
    return f"missing; it is required{hint(error['loc'][-1], map(str, names)) if names else ''}"


def _unknown_field(model: type[BaseModel], error: ErrorDetails) -> str:
    fields = _fields_at(model, error["loc"][:-1])
    name = error["loc"][-1]
    return f"unknown field{hint(name, fields) or '.'} Known fields: {', '.join(fields)}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _literal(_: type[BaseModel], error: ErrorDetails) -> str:
    words: str = error["ctx"]["expected"]  # "'a', 'b' or 'c'"
    known = [word.strip(" '") for word in words.replace(" or ", ", ").split(",")]
    value = error["input"]
    return f"unknown value {shown(value)}; use one of: {', '.join(known)}{hint(value, known)}"


def _surrogate(_: type[BaseModel], __: ErrorDetails) -> str:
    return (
        "not valid Unicode: it holds a lone surrogate; "
        "decode the source as UTF-8 before submitting it"
    )


def _not_finite(_: type[BaseModel], error: ErrorDetails) -> str:
    return f"must be a finite number, not {shown(error['input'])}"


_BY_TYPE: Mapping[str, Callable[[type[BaseModel], Any], str]] = {
    "missing": _missing,
    "extra_forbidden": _unknown_field,
    "literal_error": _literal,
    "string_unicode": _surrogate,
    "finite_number": _not_finite,
}
