"""Samples and preference pairs, and the files that hold them in a data set's folder.

`samples.jsonl` has one Sample a line: `messages` as TRL, LLaMA-Factory and axolotl read them.
`pairs.jsonl` has one Pair a line: TRL's conversational preference format; LLaMA-Factory gets a
separate file, as it needs messages where TRL needs lists of one. Parquet has the same columns.

Each column has one type on every line and no nulls: Hugging Face's loader takes the types from
the first megabytes and fails at a line that differs. So `provenance`, whose shape depends on the
source, is JSON text in the files, and no tenant is "".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, TextIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from marco_search.errors import InputError, InvalidDataSet

Message = Mapping[str, str]
"""{"role": "system", "user" or "assistant", "content": text}."""
ROLES = ("system", "user", "assistant")
_ROWS = 500  # of Parquet that are held: texts are some kilobytes each
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ABOUT: list[tuple[str, Any]] = [(name, pa.string()) for name in ("language", "tenant")]


def canonical(value: Any) -> bytes:
    """JSON in one spelling, to be hashed: sorted keys, no spaces, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


@dataclass(frozen=True)
class _Row:
    """Base of samples and pairs."""

    NAME: ClassVar[str]
    """Of the files, without ending."""
    TEXTS: ClassVar[tuple[str, ...]]
    """Fields that are lists of messages. The id is their hash."""
    SCHEMA: ClassVar[Any]

    @cached_property
    def id(self) -> str:
        """16 hex digits: equal texts have equal ids."""
        return hashlib.sha256(canonical(self._texts)).hexdigest()[:16]

    @property
    def contents(self) -> Iterator[str]:
        """The contents of its messages, the prompt's first."""
        return (message["content"] for text in self._texts for message in text)

    @property
    def _texts(self) -> list[Sequence[Message]]:
        return [getattr(self, name) for name in self.TEXTS]

    def to_json(self) -> dict[str, Any]:
        """The line of the file."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        text = {"tenant": row["tenant"] or "", "provenance": _dumps(row["provenance"])}
        return {"id": self.id, **row, **text}

    @classmethod
    def from_json(cls, line: Any) -> Self:
        """Raises ValueError saying what is wrong with the line."""
        if not isinstance(line, dict):
            raise ValueError("not a JSON object")
        try:
            values = {f.name: line[f.name] for f in fields(cls)}
        except KeyError as error:
            raise ValueError(f"no field {error}") from None
        if type(values.get("shared_prefix", 0)) is not int:
            raise ValueError("shared_prefix: must be an integer")
        for name in ("source", "language", "tenant", "provenance"):
            if not isinstance(values.get(name, ""), str):
                raise ValueError(f"{name}: must be a text")
        values["provenance"] = json.loads(values["provenance"], parse_constant=_refuse)
        if not isinstance(values["provenance"], dict):
            raise ValueError("provenance: must be the text of a JSON object")
        row = cls(**{**values, "tenant": values["tenant"] or None})
        for name in cls.TEXTS:
            check_messages(getattr(row, name), name)
        if line.get("id", row.id) != row.id:
            raise ValueError(f"its id is not that of its text, which is {row.id}")
        return row


@dataclass(frozen=True)
class Sample(_Row):
    """A conversation of which the last message is learned."""

    NAME = "samples"
    TEXTS = ("messages",)
    SCHEMA = pa.schema([
        ("id", pa.string()), ("messages", _MESSAGES), ("source", pa.string()), *_ABOUT,
        ("provenance", pa.string()),
    ])  # fmt: skip

    messages: Sequence[Message]
    source: str
    language: str
    tenant: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> Sequence[Message]:
        """What the model is given."""
        return self.messages[:-1]

    @property
    def response(self) -> str:
        """What the model learns to write."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Pair(_Row):
    """Two turns of the assistant after the same prompt: the chosen one is preferred."""

    NAME = "pairs"
    TEXTS = ("prompt", "chosen", "rejected")
    SCHEMA = pa.schema([
        ("id", pa.string()), *((name, _MESSAGES) for name in TEXTS),
        ("shared_prefix", pa.int32()), *_ABOUT, ("provenance", pa.string()),
    ])  # fmt: skip

    prompt: Sequence[Message]
    chosen: Sequence[Message]
    rejected: Sequence[Message]
    shared_prefix: int
    """Length of the common beginning, in characters."""
    language: str
    tenant: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


KINDS: dict[str, type[Sample] | type[Pair]] = {"sft": Sample, "preference": Pair}
"""Kinds of data sets."""


def check_messages(messages: Any, name: str = "messages") -> None:
    """Raises ValueError unless it is a list of messages; all but a prompt end in an assistant's."""
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"{name}: must be a list of messages")
    for number, message in enumerate(messages, start=1):
        about = message if isinstance(message, Mapping) else {}
        if about.get("role") not in ROLES or not isinstance(about.get("content"), str):
            raise ValueError(
                f"{name}: message {number} needs a role ({', '.join(ROLES)}) and a content of text"
            )
    if name != "prompt" and messages[-1]["role"] != "assistant":
        raise ValueError(f"{name}: the last message must be the assistant's")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@dataclass
class Tenants:
    """The tenants of the rows that become one data set: one, unless more are asked for."""

    mixed: bool = False
    _found: set[str] = field(default_factory=set)

    def add(self, tenant: str | None) -> None:
        """Raises InputError at a second one; rows of no tenant go with any."""
        self._found |= {tenant} if tenant else set()
        if len(self._found) > 1 and not self.mixed:
            raise InputError(
                f"rows of several tenants ({', '.join(sorted(self._found))}); "
                "--all-tenants mixes them"
            )


_Kind = TypeVar("_Kind", bound=_Row)


def read(path: Path) -> Iterator[Sample]:
    """The samples of a data set's folder, or of one such file, one at a time.

    Raises InvalidDataSet naming file and line.
    """
    return (row for _, row in places(path, Sample))


def read_pairs(path: Path) -> Iterator[Pair]:
    """The pairs, like `read`."""
    return (row for _, row in places(path, Pair))


def places(path: Path, kind: type[_Kind]) -> Iterator[tuple[int, _Kind]]:
    """The rows, like `read`, each with the byte at which its line begins."""
    file, place = file_of(path, kind), 0
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield place, kind.from_json(json.loads(line))
                except ValueError as error:
                    raise InvalidDataSet(f"{file}, line {number}: {error}") from None
                place += len(line)
    except OSError as error:
        raise InvalidDataSet(f"{file}: {error.strerror}") from None


def file_of(path: Path, kind: type[_Row]) -> Path:
    """The file with the rows of a data set's folder; a file is itself.

    Raises InvalidDataSet for a pipe.
    """
    if path.is_fifo():
        raise InvalidDataSet(f"{path}: a pipe; the manifest names files, with their hashes")
    return path / f"{kind.NAME}.jsonl" if path.is_dir() else path


class Writer:
    """Writes a data set's files into a folder, a row at a time."""

    def __init__(self, folder: Path, kind: str = "sft", *, split: str = "") -> None:
        """`kind`: one of KINDS. `split` names the files of a part that is kept apart."""
        self.count = 0
        self._kind = KINDS[kind]
        self._rows: list[dict[str, Any]] = []
        name = split or self._kind.NAME
        with ExitStack() as files:
            self._lines = _lines(folder / f"{name}.jsonl", files)
            self._single = None  # the file with messages where others have lists of one
            read_by_llama_factory = f"{name}.jsonl"
            if self._kind is Pair:
                read_by_llama_factory = f"{name}_llamafactory.jsonl"
                self._single = _lines(folder / read_by_llama_factory, files)
            file = pq.ParquetWriter(
                folder / f"{name}.parquet", self._kind.SCHEMA, compression="zstd"
            )
            self._parquet: Any = files.enter_context(file)
            self._files = files.pop_all()
        _describe(folder, name, read_by_llama_factory, self._kind)

    def __enter__(self) -> Self:
        return self

    def write(self, row: Sample | Pair) -> None:
        """Write a row to every file."""
        line = row.to_json()
        self._lines.write(_dumps(line) + "\n")
        if self._single and isinstance(row, Pair):
            single = {"chosen": row.chosen[0], "rejected": row.rejected[0]}
            self._single.write(_dumps(line | single) + "\n")
        self._rows.append(line)
        if len(self._rows) == _ROWS:
            self._flush()
        self.count += 1

    def __exit__(self, *_: object) -> None:
        with self._files:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=self._kind.SCHEMA))
            self._rows = []


def _lines(path: Path, files: ExitStack) -> TextIO:
    return files.enter_context(path.open("w", encoding="utf-8", newline="\n"))


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _describe(folder: Path, name: str, file: str, kind: type[Sample | Pair]) -> None:
    """Add a file to what LLaMA-Factory asks a folder for."""
    entry: dict[str, Any] = {
        "file_name": file,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {f"{role}_tag": role for role in ROLES}
        | {"role_tag": "role", "content_tag": "content"},
    }
    if kind is Pair:
        columns = {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
        entry |= {"ranking": True, "columns": columns}
    info = folder / "dataset_info.json"
    others = json.loads(info.read_text(encoding="utf-8")) if info.exists() else {}
    text = json.dumps(others | {name: entry}, indent=1)
    info.write_text(text + "\n", encoding="utf-8")
