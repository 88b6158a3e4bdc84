"""Problems to evaluate on, with the labels kept apart from the jobs.

`load` takes a name of our held-out sets ("heldout_en"), "mgsm:zh" (from the Hugging Face
hub: juletxara/mgsm), a TSV file as MGSM is published (question, tab, number), a JSON Lines
file, a .txt file with a question on each line, or a folder that holds such files for each
language (a clone of juletxara/mgsm).

A JSON Lines row is {"question", "answer"}, or {"text", "expected", "source", "target"} for
a translation. "expected" and "answer" may list several accepted answers; "answer_number"
(MGSM) goes before "answer".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marco_search import pocket
from marco_search.errors import InvalidDataSet, InvalidJob
from marco_search.jobs import Job
from marco_search.jobs.validation import decode_utf8, not_text
from marco_search.kinds import KINDS, own_fields, strict_json, subject_fields
from marco_search.kinds.base import Kind

MGSM_REPOSITORY = "juletxara/mgsm"
_ARRAY = "an array becomes JSON Lines with jq -c '.[]'"
MGSM_LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. Only `job` may reach a search; `expected` is for grading afterwards."""

    key: str  #: a hash of question, languages and system prompt, the same in any file
    job: Job  #: without `expected`
    expected: tuple[str, ...]  #: accepted answers; empty if there is none to grade by


def load(source: str, *, language: str | None = None, limit: int | None = None) -> list[Problem]:
    """The problems of a set, in file order; the first `limit` of them.

    `language` picks the file of a folder. Raises InvalidDataSet.
    """
    problems: dict[str, Problem] = {}
    for place, row in rows(source, language):
        problem = from_row(row, place)
        problems.setdefault(problem.key, problem)
    if not problems:
        raise InvalidDataSet(f"{source}: holds no problems")
    return list(problems.values())[:limit]


def from_row(row: dict[str, Any], place: str) -> Problem:
    """The problem that one row describes; `place` names it in errors."""
    # Of the kind whose subject the row has.
    kind = next(
        (k for k in reversed(KINDS.values()) if row.get(k.model.subject_field) is not None), None
    )
    if kind is None:
        first, *others = (f'"{name}"' for name in subject_fields())
        raise InvalidDataSet(f"{place}: needs a {first} (or {', '.join(others)})")
    names = (kind.model.subject_field, "system_prompt", *own_fields(kind))
    try:
        job: Job = kind.model(**{k: row[k] for k in names if row.get(k) is not None})
    except InvalidJob as error:
        raise InvalidDataSet(f"{place}: {error}") from None
    labels = (row.get(k) for k in ("expected", "answer_number", "answer"))
    expected: Any = next((label for label in labels if not _is_blank(label)), ())
    accepted = expected if isinstance(expected, list | tuple) else [expected]
    if not all(isinstance(a, str | int | float) for a in accepted):
        raise InvalidDataSet(f"{place}: an answer must be text or a number, or a list of those")
    return Problem(_key(kind, job), job, tuple(str(a) for a in accepted if not _is_blank(a)))


def _is_blank(label: object) -> bool:
    """Whether it is no label: sets without answers often have an empty one."""
    return label is None or (isinstance(label, str) and not label.strip())


def _key(kind: Kind[Any], job: Job) -> str:
    """The same text for two languages, or under two system prompts, is two problems."""
    fields = kind.model.model_fields
    own = {name: getattr(job, name) for name in (*own_fields(kind), "system_prompt")}
    other = {name: value for name, value in own.items() if value != fields[name].default}
    parts = [job.kind, job.subject, *([json.dumps(other, sort_keys=True)] if other else [])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def file_stem(source: str) -> str:
    """A set's name as a part of names of files about it."""
    return Path(source).stem.replace(":", "-")


Rows = Iterable[tuple[str, dict[str, Any]]]


def rows(source: str, language: str | None = None) -> Rows:
    """The rows of a set, see `load`, each with its place for errors. Raises InvalidDataSet."""
    name, _, mgsm_language = source.partition(":")
    if name in ("mgsm", MGSM_REPOSITORY):
        return _tsv(_from_hub(mgsm_language or language or "en"))
    path = Path(source)
    if language and not path.is_dir():
        raise InvalidDataSet(f"{source}: no folder: a language names a file of one, or of MGSM")
    if source in pocket.HELD_OUT_SETS:
        return [(f"{source}, row {i}", r) for i, r in enumerate(pocket.held_out(source), start=1)]
    if path.is_dir():
        # By the names that copies of MGSM use.
        of = language or "en"
        names = (f"mgsm_{of}", of, f"{of}/test", f"test_{of}")
        files = [path / f"{name}{suffix}" for name in names for suffix in (".tsv", ".jsonl")]
        found = next(filter(Path.is_file, files), None)
        if found is None:
            raise InvalidDataSet(f"{path}: has no mgsm_{of}.tsv, .jsonl or {of}.jsonl")
        path = found
    if not path.exists():
        known = ", ".join(pocket.HELD_OUT_SETS)
        raise InvalidDataSet(f"{source}: no such file; or use one of {known}, mgsm:LANGUAGE")
    if path.suffix == ".txt":
        return ((place, {"question": line}) for place, line in _lines(path))
    return _tsv(path) if path.suffix == ".tsv" else _json_lines(path)


def _from_hub(language: str) -> Path:
    if language not in MGSM_LANGUAGES:
        raise InvalidDataSet(f"MGSM has no {language!r}; it has {', '.join(MGSM_LANGUAGES)}")
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    name = f"mgsm_{language}.tsv"
    cached = try_to_load_from_cache(MGSM_REPOSITORY, name, repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached)
    try:
        # The download tries again for half a minute; this does not, and says so at once.
        get_hf_file_metadata(hf_hub_url(MGSM_REPOSITORY, name, repo_type="dataset"), timeout=10)
        found = hf_hub_download(MGSM_REPOSITORY, name, repo_type="dataset")
    except Exception as error:
        raise InvalidDataSet(
            f"{MGSM_REPOSITORY} can't be fetched ({type(error).__name__}); "
            f"give the path of {name} instead"
        ) from error
    return Path(found)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file in UTF-8 and their places; blank ones are left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidDataSet(f"{path}: {error.strerror or error}") from None
    if other := not_text(data[:4096]):
        raise InvalidDataSet(
            f"{path}, line 1: this is {other[0]}; a set is a TSV or a JSON Lines file in UTF-8"
        )
    for i, line in enumerate(data.split(b"\n"), start=1):
        place = f"{path}, line {i}"
        try:
            text = decode_utf8(line, place).removesuffix("\r")
        except InvalidJob as error:
            raise InvalidDataSet(str(error)) from None
        if text.strip():
            yield place, text


def _tsv(path: Path) -> Rows:
    # MGSM has quotation marks inside fields and none around them.
    for i, (place, line) in enumerate(_lines(path)):
        fields = line.split("\t")
        if len(fields) != 2 or not all(f.strip() for f in fields):
            raise InvalidDataSet(f"{place}: needs a question, a tab and an answer")
        if i == 0 and fields[1].strip().casefold() in ("answer", "answer_number", "label"):
            continue  # the names of the columns
        yield place, {"question": fields[0], "answer": fields[1]}


def _json_lines(path: Path) -> Rows:
    for place, line in _lines(path):
        try:
            row = strict_json(line)
        except InvalidJob as error:
            raise InvalidDataSet(f"{place}: {error.field}: {error.reason}") from None
        except (ValueError, RecursionError) as error:
            hint = f"; {_ARRAY}" if line.lstrip().startswith("[") else ""
            reason = getattr(error, "msg", "a number or a nesting is too large")
            raise InvalidDataSet(f"{place}: not valid JSON: {reason}{hint}") from None
        if not isinstance(row, dict):
            raise InvalidDataSet(f"{place}: must be a JSON object; {_ARRAY}")
        yield place, row
