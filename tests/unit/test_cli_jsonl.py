"""A file of jobs is taken as a whole, or every bad line is named and nothing is taken."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from marco_search.cli.job_input import checked, read_lines
from marco_search.errors import InputError, InvalidBatch, InvalidJob
from marco_search.kinds import ReasoningJob, TranslationJob

GOOD = b'{"kind": "reasoning", "question": "What is 1+1?"}'


def test_jobs_come_in_order_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(
        GOOD + b"\n\n  \r\n" + '{"kind":"translation","text":"你好"}\r\n'.encode() + GOOD
    )
    first, second, third = read_lines(str(path)).values()
    assert isinstance(first, ReasoningJob)
    assert isinstance(second, TranslationJob)
    assert second.text == "你好"
    assert third == first


def test_every_bad_line_is_named_with_its_number_field_and_reason() -> None:
    lines = [
        GOOD,
        b"{",
        b"",
        b'{"kind": "reasoning"}',
        b'{"kind": "reasoning", "question": "\xff"}',
        b'{"kind": "reasoning", "question": "1+1?", "options": {"rollouts": 0}}',
    ]
    with pytest.raises(InvalidBatch) as caught:
        dict(checked(lines, "jobs.jsonl", {}))
    message = str(caught.value).splitlines()
    assert message[0] == "jobs.jsonl: 4 bad lines, nothing was submitted"
    assert message[1].startswith("  line 2: not valid JSON")
    assert message[2].startswith("  line 4, question: missing")
    assert message[3].startswith("  line 5: not valid UTF-8")
    assert message[4].startswith("  line 6, options.rollouts: must be at least 1")
    assert len(caught.value.errors) == 4


def test_a_file_of_another_format_does_not_fill_the_screen() -> None:
    with pytest.raises(InvalidBatch) as caught:
        dict(checked([b"name,question"] * 5000, "jobs.csv", {}))
    message = str(caught.value).splitlines()
    assert "5,000 bad lines" in message[0]
    assert len(message) < 110
    assert message[-1].strip() == "and 4,900 more"


def test_command_line_options_fill_in_what_a_line_leaves_open() -> None:
    line = b'{"kind": "reasoning", "question": "1+1?", "options": {"rollouts": 4}}'
    jobs = dict(checked([line, GOOD], "f", {"rollouts": 9, "strategy": "vote"}))
    own, none = jobs.values()
    assert (own.options.rollouts, own.options.strategy) == (4, "vote")
    assert (none.options.rollouts, none.options.strategy) == (9, "vote")


def test_a_bad_option_of_the_command_line_is_reported_once() -> None:
    with pytest.raises(InvalidJob, match="rollouts: must be at least 1"):
        dict(checked([GOOD] * 3, "f", {"rollouts": 0}))


def test_a_line_that_is_too_long_is_named_as_such() -> None:
    with pytest.raises(InvalidBatch, match="line 2: longer than 4,194,304 bytes"):
        dict(checked([GOOD, b'{"question": "' + b"x" * 2**22 + b'"}'], "f", {}))


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"\n \n")
    with pytest.raises(InputError, match="no job in it"):
        read_lines(str(empty))
    with pytest.raises(InputError, match="No such file"):
        read_lines(str(tmp_path / "missing.jsonl"))


def test_standard_input_can_be_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(GOOD))))
    assert len(read_lines("-")) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x1f\x8b\x08\x00", "gzip -dc"),
        ('{"kind": "reasoning"}'.encode("utf-16"), "UTF-16"),
        (b'[\n{"kind": "reasoning", "question": "1+1?"}]', "jq -c '.\\[\\]'"),
        (b'\xef\xbb\xbf{\n  "kind": "reasoning",\n "question": "1+1?"\n}\n', "several lines"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "jobs"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_lines(str(path))


def test_an_expected_number_is_its_text() -> None:
    line = b'{"kind": "reasoning", "question": "1+1?", "expected": %s}'
    jobs = dict(checked([line % b"391", line % b"2.5", line % b'"4"'], "jobs", {}))
    assert [job.expected for job in jobs.values()] == ["391", "2.5", "4"]
    with pytest.raises(InvalidBatch, match="expected"):
        dict(checked([line % b"true"], "jobs", {}))
