"""Problems from files, and the errors of malformed files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from marco_search import pocket
from marco_search.errors import InvalidDataSet
from marco_search.evaluation.data_sets import MGSM_LANGUAGES, load
from marco_search.kinds import ReasoningJob, TranslationJob
from ops.pocket import samples
from ops.pocket.samples import held_out_problems, is_held_out


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_mgsm_tsv_is_read_as_published(tmp_path: Path) -> None:
    source = write(tmp_path / "mgsm_zh.tsv", '小明说"好"，有几个？\t18\nHow many?\t1,200\n')
    problems = load(source)
    assert [p.job.subject for p in problems] == ['小明说"好"，有几个？', "How many?"]
    assert [p.expected for p in problems] == [("18",), ("1,200",)]


def test_a_folder_has_a_file_for_each_language(tmp_path: Path) -> None:
    for language in MGSM_LANGUAGES:
        row = {"question": f"{language}?", "answer": None, "answer_number": 7}
        write(tmp_path / f"mgsm_{language}.jsonl", json.dumps(row) + "\n")
    for language in MGSM_LANGUAGES:
        (problem,) = load(str(tmp_path), language=language)
        assert (problem.job.subject, problem.expected) == (f"{language}?", ("7",))
    with pytest.raises(InvalidDataSet, match=r"mgsm_xx\.tsv"):
        load(str(tmp_path), language="xx")


def test_no_job_holds_its_label() -> None:
    for name in pocket.HELD_OUT_SETS:
        problems = load(name)
        assert len(problems) == len({p.key for p in problems}) >= 60
        assert all(p.job.expected is None and p.expected for p in problems)
        expected = TranslationJob if name == "heldout_translation" else ReasoningJob
        assert all(isinstance(p.job, expected) for p in problems)


def test_limit_takes_the_first() -> None:
    assert load("heldout_en", limit=3) == load("heldout_en")[:3]


def test_a_text_into_two_languages_is_two_problems(tmp_path: Path) -> None:
    given = [("en", "Hello"), ("fr", "Bonjour"), ("fr", "Bonjour")]
    lines = [json.dumps({"text": "你好", "target": t, "expected": e}) for t, e in given]
    lines.append(json.dumps({"text": "你好", "expected": "Hello"}))
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(lines))
    assert [problem.expected for problem in load(str(file))] == [("Hello",), ("Bonjour",)]


def test_a_problem_has_the_same_key_in_every_file(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", "How many?\t3\n")
    lines = write(tmp_path / "b.jsonl", '{"question": "How many?", "answer": 4}\n')
    for of_one_language in (lines, "heldout_en"):
        with pytest.raises(InvalidDataSet, match="a language names a file of one"):
            load(of_one_language, language="de")
    assert load(tsv)[0].key == load(lines)[0].key


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "no answer\n", "line 1: needs a question, a tab and an answer"),
        ("a.jsonl", '{"question": "q"}\nnot json\n', "line 2: not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: must be a JSON object"),
        ("a.jsonl", '{"query": "q"}\n', 'line 1: needs a "question"'),
        ("a.jsonl", "\n", "holds no problems"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InvalidDataSet, match=message):
        load(write(tmp_path / name, text))


def test_error_of_an_unknown_set_lists_the_known_ones() -> None:
    with pytest.raises(InvalidDataSet, match="heldout_en"):
        load("heldout_xx")
    with pytest.raises(InvalidDataSet, match="MGSM has no 'xx'"):
        load("mgsm:xx")


@pytest.mark.parametrize("kind", ["normal", "hard"])
def test_a_split_shares_no_question_with_training_the_shipped_sets_or_development(
    kind: samples.Kind,
) -> None:
    shipped = {r["question"] for name in pocket.HELD_OUT_SETS for r in pocket.held_out(name)}
    problems = samples.draw(samples.DEVELOPMENT, kind, "en", 30)
    assert len({p.question for p in problems} - shipped) == 30
    assert all(is_held_out(p.question) for p in problems)
    assert kind == "normal" or all(p.is_hard and len(p.events) in (5, 6) for p in problems)
    used = {p.question for p in problems[:10]}
    name, hard = f"{samples.DEVELOPMENT}/{kind}/en", kind == "hard"
    assert held_out_problems("en", 20, name, hard=hard, without=used) == problems[10:30]


def test_a_line_separator_in_a_question_is_no_line_end(tmp_path: Path) -> None:
    row = json.dumps({"question": "What\u2028is 1 + 1?", "answer": "2"}, ensure_ascii=False)
    (problem,) = load(write(tmp_path / "one.jsonl", row + "\n"))
    assert problem.job.subject == "What\u2028is 1 + 1?"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tsv", "Wie groß?\t3\n".encode("latin-1"), "line 1: not valid UTF-8"),
        ("a.jsonl", b'{"question": "q", "answer": 1}\n{"question": "\xe9"}\n', "line 2: not valid"),
        ("a.tsv", "q\t1\n".encode("utf-16"), "line 1: this is UTF-16"),
        ("a.tsv", "q\t1\n".encode("utf-16-le"), "line 1: this is UTF-16"),
        ("a.tsv", b"q\t1\n" * 2_000 + b"a\0b\t2\n", "line 2001: question: holds a NUL"),
        ("a.jsonl", b"PAR1\x15\x04", "line 1: this is a Parquet file"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "line 1: this is compressed by gzip"),
        ("a.jsonl", b'[{"question": "q", "answer": 1}]\n', r"line 1: must be .*jq -c"),
        ("a.jsonl", b'[\n  {"question": "q"}\n]\n', r"line 1: not valid JSON.*jq -c"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1: not valid JSON: a number or a nesting is"),
        ("a.jsonl", b'{"question": ' + b"9" * 5_000 + b"}", "line 1: not valid JSON: a num"),
        ("a.jsonl", b'{"question": "q", "answer": 1, "answer": 2}', "line 1: answer: given twice"),
        ("a.jsonl", b'{"question": "q", "answer": NaN}', "line 1: job: NaN is not valid"),
        ("a.tsv", b"q\t1\n" + b"x" * 200_000 + b"\t2\n", "line 2: question: too long: 200,000"),
        ("a.tsv", b"q\t1\nq\t1\t2\n", "line 2: needs a question, a tab and an answer"),
        ("a.jsonl", b'{"question": "q", "answer": {"a": 1}}\n', "line 1: an answer must be"),
        ("a.jsonl", b'{"text": 5}\n', "line 1: text: must be text"),
    ],
)  # fmt: skip
def test_errors_of_unreadable_files_name_file_and_line(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidDataSet, match=rf"{name}, {message}"):
        load(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl"])
def test_byte_order_mark_and_line_ends_are_stripped(tmp_path: Path, name: str) -> None:
    text = "q?\t3\r\n" if name == "a.tsv" else '{"question": "q?", "answer": 3}\r\n'
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    (problem,) = load(str(tmp_path / name))
    assert (problem.job.subject, problem.expected) == ("q?", ("3",))


def test_a_row_may_have_its_system_prompt_and_a_table_its_head(tmp_path: Path) -> None:
    row = json.dumps({"question": "q", "answer": 1, "system_prompt": "Be brief."})
    assert load(write(tmp_path / "a.jsonl", row))[0].job.system_prompt == "Be brief."
    assert len(load(write(tmp_path / "a.tsv", "question\tanswer\nq\t1\n"))) == 1


def test_a_question_under_two_system_prompts_is_two_problems(tmp_path: Path) -> None:
    row = {"question": "q", "answer": 1}
    rows = [row | {"system_prompt": "Be brief."}, row | {"system_prompt": "Explain."}, row, row]
    assert len(load(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))) == 3


@pytest.mark.parametrize("blank", ["", "  ", None, [], [""]])
def test_a_blank_answer_is_no_label(tmp_path: Path, blank: object) -> None:
    rows = [{"question": "q", "answer": blank}, {"question": "r", "expected": " ", "answer": 5}]
    file = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert [problem.expected for problem in load(file)] == [(), ("5",)]
