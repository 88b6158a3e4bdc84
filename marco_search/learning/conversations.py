"""Conversations in the shapes in which data sets are published, made into samples.

A file is JSON Lines or one JSON array; a data set's folder is read too. A row is in one of these
shapes, and may have a `system` text:

- `messages`: OpenAI's; roles and contents;
- `conversations`: ShareGPT's; `from` (human, gpt, system) and `value`;
- `instruction`, perhaps `input` and `history`, and `output` or `response`: Alpaca's, Marco-o1's;
- `prompt`, `question` or `query`, and `completion`, `response` or `answer`; texts or messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from marco_search.errors import InvalidDataSet, InvalidJob
from marco_search.files import digest, whole_folder
from marco_search.jobs.validation import another_format, decode_utf8
from marco_search.learning import manifest
from marco_search.learning.filters import Rule, first_reason, parameters
from marco_search.learning.samples import Sample, Tenants, Writer, file_of
from marco_search.profiles import language_of

_CHUNK = 1 << 20  # characters of an array that are read at once
_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant",
}  # fmt: skip
_ASKED = ("instruction", "prompt", "question", "query")
_ANSWERED = ("output", "response", "completion", "answer", "chosen")
_SHAPES = (
    'needs "messages", "conversations", or a question and an answer, as "instruction" and "output"'
)


def read(path: Path, source: str) -> Iterator[tuple[int, Sample | str]]:
    """The rows of a file: number (line, or place in the array) and sample, or what is wrong.

    Rows of a data set of ours keep their provenance. Raises InvalidDataSet if the file can't be
    read at all.
    """
    file = file_of(path, Sample)
    for number, row in _rows(file):
        try:
            yield number, _sample(row(), source, {"file": file.name, "line": number})
        except (ValueError, TypeError, RecursionError, InvalidJob) as error:
            yield number, error.reason if isinstance(error, InvalidJob) else str(error)


def _sample(row: Any, source: str, provenance: Mapping[str, Any]) -> Sample:
    if not isinstance(row, dict):
        raise ValueError("must be a JSON object")
    if {"messages", "provenance", "source", "tenant"} <= row.keys():
        return Sample.from_json(row)
    messages = conversation(row)
    question = " ".join(m["content"] for m in messages if m["role"] == "user")
    return Sample(messages, source, language_of(question), None, provenance)


def conversation(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of a row, the assistant's last. Raises ValueError saying what is wrong."""
    found = row.get("messages") or row.get("conversations") or row.get("conversation")
    messages = _messages(found) if found else _question_and_answer(row)
    if row.get("system") and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": _text(row["system"])}, *messages]
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if "system" in [message["role"] for message in messages[1:]]:
        raise ValueError("a system message that is not the first")
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise ValueError(
            f"messages must alternate and end with the assistant's, not {', '.join(roles)}"
        )
    return messages


def _messages(found: Any) -> list[dict[str, str]]:
    if not isinstance(found, list) or not all(isinstance(m, dict) for m in found):
        raise ValueError("its messages are not a list of objects")
    return [
        {
            "role": _role(m.get("role", m.get("from"))),
            "content": _text(m.get("content", m.get("value"))),
        }
        for m in found
    ]


def _role(name: Any) -> str:
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"a message of {name!r}; only system, user and assistant can be learned")
    return role


def _text(content: Any) -> str:
    """A text, or OpenAI's list of parts that are texts."""
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise ValueError("a content with parts that are not text")
        content = "".join(_text(part.get("text")) for part in content)
    if not isinstance(content, str):
        raise ValueError("a content that is not text")
    return content


def _question_and_answer(row: Mapping[str, Any]) -> list[dict[str, str]]:
    asked = next((row[name] for name in _ASKED if row.get(name)), None)
    answered = next((row[name] for name in _ANSWERED if row.get(name)), None)
    if asked is None or answered is None:
        raise ValueError(_SHAPES)
    if isinstance(asked, str) and row.get("input"):
        asked = f"{asked}\n\n{_text(row['input'])}"
    turns = row.get("history") or []
    if not isinstance(turns, list) or not all(isinstance(t, list) and len(t) == 2 for t in turns):
        raise ValueError("a history that is not a list of pairs, each a question and its answer")
    sides = [(_side(q, "user"), _side(a, "assistant")) for q, a in [*turns, (asked, answered)]]
    return [message for question, answer in sides for message in (*question, *answer)]


def _side(value: Any, role: str) -> list[dict[str, str]]:
    if isinstance(value, list):
        return _messages(value)
    return [{"role": role, "content": _text(value)}]


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Number and a function that gives the row, or raises ValueError or InvalidJob."""
    try:
        with file.open("rb") as data:
            begin = data.read(4096)
        if begin.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            yield from _array(file)
            return
        if other := another_format(begin):
            what, converter = other
            raise InvalidDataSet(
                f"{file}: this is {what}"
                + (f"; `{converter}` makes JSON Lines of it" if converter else "")
            )
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, lambda line=line: json.loads(decode_utf8(line, "line"))
    except OSError as error:
        raise InvalidDataSet(f"{file}: {error.strerror}") from None


def _array(file: Path) -> Iterator[tuple[int, Any]]:
    """The elements of an array, decoded one at a time: it may be larger than memory."""
    decoder, number = json.JSONDecoder(), 0
    broken = f"{file}: not valid JSON after element "
    with file.open(encoding="utf-8-sig", errors="replace") as text:
        buffer = text.read(_CHUNK).lstrip()[1:]
        while True:
            buffer = buffer.lstrip(" \t\r\n,")
            try:
                row, end = decoder.raw_decode(buffer)
            except ValueError:
                if buffer.startswith("]"):
                    if (buffer[1:] + text.read(_CHUNK)).strip():
                        raise InvalidDataSet(
                            f"{file}: something follows its array; rows of JSON Lines are objects"
                        ) from None
                    return
                chunk = text.read(_CHUNK)
                if not chunk:
                    raise InvalidDataSet(f"{broken}{number}; is it cut short?") from None
                buffer += chunk
                continue
            except RecursionError:
                raise InvalidDataSet(f"{broken}{number}: nested too deeply") from None
            number, buffer = number + 1, buffer[end:]
            yield number, lambda row=row: row


def build(
    paths: Sequence[Path],
    folder: Path,
    rules: Mapping[str, Rule],
    *,
    command: str,
    all_tenants: bool = False,
) -> dict[str, Any]:
    """Make a data set of files at `folder`; its manifest.

    What is left out is in dropped.json, and line by line in dropped.jsonl. Raises InputError, also
    for rows of several tenants, unless they are asked for.
    """
    dropped, count, tenants = manifest.Dropped(), 0, Tenants(all_tenants)
    with whole_folder(folder) as part:
        with Writer(part) as writer, (part / "dropped.jsonl").open("w", encoding="utf-8") as log:
            for path in paths:
                for number, row in read(path, command.split()[-1]):
                    count += 1
                    if isinstance(row, str):
                        found: tuple[str, str] | None = ("unreadable", row)
                    else:
                        tenants.add(row.tenant)
                        found = first_reason(rules, row)
                    if found:
                        about: dict[str, Any] = {"file": str(path), "line": number}
                        dropped.add(*found, **about)
                        log.write(
                            json.dumps({"rule": found[0], "reason": found[1], **about}) + "\n"
                        )
                    elif isinstance(row, Sample):
                        writer.write(row)
        return manifest.write(
            part,
            name=folder.name,
            kind="sft",
            command=command,
            rules=parameters(rules),
            counts={"in": count, "out": writer.count},
            dropped=dropped,
            inputs=[source_of(path) for path in paths],
        )


def source_of(path: Path) -> dict[str, Any]:
    """What a manifest says of an input: of a folder its manifest's hash and inputs, else a hash."""
    if path.is_dir():
        made = manifest.read(path)
        if changed := manifest.broken(path, made):
            raise InvalidDataSet(
                f"{path}: not as its manifest says: {', '.join(changed)}; build it again, or name "
                "the file to read instead of the folder"
            )
        return {"path": str(path)} | {name: made[name] for name in ("manifest_sha256", "inputs")}
    return {"path": str(path), "sha256": digest(path)}
