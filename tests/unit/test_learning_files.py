"""`marco dataset filter`, `instructions` and `mix`: files in, a data set out."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marco_search.cli.main import main
from marco_search.files import whole_folder
from marco_search.learning import filters, manifest, samples
from marco_search.learning.samples import Sample, Writer
from tests.pipes import piped

ROOT = Path(__file__).resolve().parents[2]
COT = ROOT.parent / "shared" / "data" / "marco_cot" / "CoT_demo.json"
QUESTION = "Tom has 90 cards and gives 49 of them to Lily. How many are left?"
THOUGHT = "Tom has 90 cards. He gives 49 away, so 90 - 49 = 41 cards are left with him."
RESPONSE = f"<Thought>\n{THOUGHT}\n</Thought>\n<Output>\nTom has 41 cards left.\n</Output>"
CHINESE = "汤姆有90张卡片，送给莉莉49张，还剩多少张卡片？"

Run = Callable[..., str]


@pytest.fixture
def marco(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; what it printed."""

    def run(*words: str | Path, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out + printed.err

    return run


def sample(response: str, question: str = QUESTION) -> Sample:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": response},
    ]
    return Sample(messages, "filter", "en")


@pytest.mark.parametrize(
    ("rule", "row"),
    [
        (None, sample(RESPONSE)),
        (None, sample(RESPONSE.replace("Tom has 41", "`Fn() -> <Output = i32>` <li> Tom has 41"))),
        ("encoding", sample(RESPONSE.replace("cards", "ca\ufffdds"))),
        ("encoding", sample(RESPONSE.replace("cards", "cafÃ©s"))),
        ("encoding", sample(RESPONSE.replace("cards", "\ud800"))),
        ("length", sample("")),
        ("length", sample(RESPONSE, " ")),
        ("length", sample(RESPONSE.replace(THOUGHT, "x1 " * 12_000))),
        ("repetition", sample(RESPONSE.replace(THOUGHT, (THOUGHT + "\n") * 12))),
        ("repetition", sample(RESPONSE.replace(THOUGHT, "wait, let me think again, " * 20))),
        ("tags", sample(RESPONSE.removesuffix("</Output>"))),
        ("tags", sample(RESPONSE.replace("</Thought>", "</thought>"))),
        ("tags", sample(RESPONSE.replace("</Thought>", "</Thought>\n</Thought>"))),
        ("tags", sample(f"Sure! {RESPONSE}")),
        ("tags", sample(f"{RESPONSE} Bye!")),
        ("tags", sample("<Output>\n4\n</Output>\n<Thought>\nwell\n</Thought>")),
        ("answer", sample(RESPONSE.replace("Tom has 41 cards left.", "..."))),
        ("thought", sample(RESPONSE.replace(THOUGHT, "90 - 49 = 41"))),
        ("language", sample(RESPONSE, CHINESE)),
        ("language", sample(RESPONSE.replace(THOUGHT, CHINESE * 2))),
        (None, sample(RESPONSE.replace("Tom has 41 cards left.", "41张"), "还剩多少张卡片？")),
    ],
)  # fmt: skip
def test_each_rule_names_what_it_leaves_out(rule: str | None, row: Sample) -> None:
    found = filters.first_reason(filters.thoughts(), row)
    assert (found and found[0]) == rule


def test_tags_and_limits_are_parameters() -> None:
    response = RESPONSE.replace("Thought>", "think>").replace("Output>", "answer>")
    turn, limits = filters.turn_of("<think>", "<answer>"), filters.Limits(least_thought=100)
    assert filters.first_reason(filters.thoughts(turn), sample(response)) is None
    found = filters.first_reason(filters.thoughts(turn, limits), sample(response))
    assert found == ("thought", f"the thought has {len(THOUGHT)} characters")


def test_marco_o1s_own_samples(marco: Run, tmp_path: Path) -> None:
    if not COT.exists():
        pytest.skip(f"{COT} is not there: Marco-o1's 125 public samples of thought")
    made = json.loads(marco("dataset", "filter", tmp_path / "set", COT, "--json"))
    # Five with lost characters, two cut short, and one that answers Chinese in English.
    assert made["counts"]["dropped"] == {"encoding": 5, "tags": 2, "language": 1}
    assert made["counts"]["out"] == len(list(samples.read(tmp_path / "set"))) == 117
    assert manifest.broken(tmp_path / "set", manifest.read(tmp_path / "set")) == []
    log = (tmp_path / "set" / "dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in log] == [2, 9, 11, 24, 60, 73, 110, 113]
    again = json.loads(marco("dataset", "filter", tmp_path / "2", tmp_path / "set", "--json"))
    assert again["files"]["samples.jsonl"] == made["files"]["samples.jsonl"]  # nothing else to drop


SHAPES: list[Any] = [
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi 1"},
                  {"role": "assistant", "content": [{"type": "text", "text": "Hello 1"}]}]},
    {"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi 2"},
                                             {"from": "gpt", "value": "Hello 2"}]},
    {"instruction": "Say it in French.", "input": "Hi 3", "output": "Bonjour 3"},
    {"instruction": "And 4?", "response": "Hello 4", "history": [["Hi 3", "Hello 3"]]},
    {"prompt": "Hi 5", "completion": "Hello 5"},
    {"prompt": [{"role": "user", "content": "Hi 6"}],
     "completion": [{"role": "assistant", "content": "Hello 6"}]},
    {"question": "7加1是多少？", "answer": "8"},
]  # fmt: skip
BAD: list[tuple[Any, str]] = [
    ([1], "must be a JSON object"),
    ({"text": "once upon a time"}, 'needs "messages"'),
    ({"messages": [{"role": "tool", "content": "x"}]}, "only system, user and assistant"),
    ({"messages": [{"role": "user", "content": "x"}]}, "end with the assistant's"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not text"),
    ({"conversations": "x"}, "not a list of objects"),
    ({"prompt": "x", "completion": 3}, "not text"),
    *(
        ({"instruction": "x", "output": "y", "history": odd}, "not a list of pairs")
        for odd in ([["z"]], ["ab"], "z", 7, {"z": "z"}, [{"a": 1, "b": 2}])
    ),
]


@pytest.mark.parametrize("array", [False, True])
def test_conversations_of_every_shape(marco: Run, tmp_path: Path, array: bool) -> None:
    rows = [*SHAPES, *(row for row, _ in BAD)]
    file, folder = tmp_path / "chat.json", tmp_path / "set"
    lines = json.dumps(rows) if array else "\n".join(map(json.dumps, rows)) + "\n{\n\xff"
    file.write_bytes(lines.encode("latin-1"))
    made = json.loads(marco("dataset", "instructions", folder, file, "--json"))
    read = list(samples.read(folder))
    assert [r.messages[-1]["content"] for r in read] == [
        "Hello 1", "Hello 2", "Bonjour 3", "Hello 4", "Hello 5", "Hello 6", "8",
    ]  # fmt: skip
    assert [m["role"] for m in read[0].messages] == ["system", "user", "assistant"]
    assert read[0].messages[0] == read[1].messages[0]
    assert read[2].prompt[0]["content"] == "Say it in French.\n\nHi 3"
    assert len(read[3].messages) == 4
    assert (read[6].language, read[6].provenance) == ("zh", {"file": "chat.json", "line": 7})
    dropped = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    for line, (number, (_, reason)) in zip(dropped, enumerate(BAD, start=8), strict=False):
        assert (line["rule"], line["line"]) == ("unreadable", number)
        assert reason in line["reason"]
    assert made["counts"]["dropped"] == {"unreadable": len(dropped)}
    assert len(dropped) == len(BAD) + (0 if array else 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b\0", "gzip"),
        (b'[{"prompt": "a", "answer": "b"}, {"pro', "after element 1"),
        (b'[{"prompt": "a", "answer": "b"}]\n[{}]', "something follows its array"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_cant_be_read_makes_no_folder(
    marco: Run, tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "chat.json").write_bytes(data)
    words = ("dataset", "instructions", tmp_path / "set", tmp_path / "chat.json")
    assert message in marco(*words, code=2)
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.parametrize("words", [["instructions"], ["filter"]])
def test_a_pipe_is_no_file_that_a_manifest_could_name(
    marco: Run, tmp_path: Path, words: list[str]
) -> None:
    with piped([{"prompt": "a", "answer": "b"}]) as pipe:
        assert "pipe" in marco("dataset", *words, tmp_path / "set", pipe, code=2)
    assert not (tmp_path / "set").exists()


def test_a_data_set_of_nothing_is_said_to_be_empty(marco: Run, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text("")
    said = marco("dataset", "instructions", tmp_path / "set", tmp_path / "chat.jsonl")
    assert "is empty" in said


def chats(folder: Path, marco: Run, count: int, *, name: str = "chat", each: int = 2) -> Path:
    """A data set of `count` prompts with `each` answers."""
    rows = [
        {"prompt": f"{name}: what comes after {n}?", "completion": f"{n + 1}, says number {i}"}
        for n in range(count)
        for i in range(each)
    ]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    marco("dataset", "instructions", folder / name, file, "--near-duplicate", "1")
    return folder / name


def test_mixing_weighs_splits_and_is_the_same_again(marco: Run, tmp_path: Path) -> None:
    half, twice = (chats(tmp_path, marco, 150, name=name) for name in ("half", "twice"))
    words = [f"{half}=0.5", f"{twice}=2", "--validation", "0.2", "--seed", "7", "--json"]
    made = json.loads(marco("dataset", "mix", tmp_path / "a", *words))
    again = json.loads(marco("dataset", "mix", tmp_path / "b", *words))
    assert made["files"] == again["files"]
    train = list(samples.read(tmp_path / "a"))
    apart = list(samples.read(tmp_path / "a" / "validation.jsonl"))
    asked = [{row.prompt[0]["content"] for row in rows} for rows in (train, apart)]
    assert not asked[0] & asked[1]
    assert 30 <= len(asked[1]) <= 90  # of 300 prompts a fifth, and of half of them fewer
    of_train = Counter(row.prompt[0]["content"].partition(":")[0] for row in train)
    assert 85 <= of_train["half"] <= 155 and 420 <= of_train["twice"] <= 540
    assert set(Counter(row.id for row in apart).values()) == {1}
    assert [row.id for row in train] != sorted(row.id for row in train)
    assert {i["manifest_sha256"] for i in made["inputs"]} == {
        manifest.read(folder)["manifest_sha256"] for folder in (half, twice)
    }
    of_both = manifest.lineage(
        json.loads(marco("dataset", "mix", tmp_path / "d", tmp_path / "a", "--json"))
    )
    assert len(of_both) == 4  # its own, the mix's, and those of the two that were mixed
    other = json.loads(marco("dataset", "mix", tmp_path / "c", *words, "--seed", "8"))
    assert made["files"] != other["files"]


def test_tenants_and_kinds_are_not_mixed_unasked(marco: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        row = sample(RESPONSE, f"{name}: {QUESTION}")
        folder = tmp_path / name
        with whole_folder(folder) as part:
            with Writer(part) as out:
                out.write(Sample(row.messages, "traces", "en", name, {}))
            manifest.write(
                part, name=name, kind="sft", command="", rules={}, counts={"in": 1, "out": 1},
                dropped=manifest.Dropped(), inputs=[],
            )  # fmt: skip
    words = ["dataset", "instructions", *(tmp_path / name for name in ("all", "one", "two"))]
    assert "several tenants (one, two); --all-tenants" in marco(*words, code=2)
    words[1] = "mix"
    assert "several tenants (one, two); --all-tenants" in marco(*words, code=2)
    assert not (tmp_path / "all").exists()
    made = json.loads(marco(*words, "--all-tenants", "--json"))
    assert made["counts"]["out"] == 2
    marco("dataset", "mix", tmp_path / "none", f"{tmp_path / 'one'}=0", code=2)
    (tmp_path / "part").mkdir()
    for text in ('{"format": 1, "kind": "sft", "files": {}}', "[" * 99_999):
        (tmp_path / "part" / "manifest.json").write_text(text)
        assert "manifest.json" in marco("dataset", "mix", *words[2:3], tmp_path / "part", code=2)
    twice = marco("dataset", "mix", tmp_path / "none", tmp_path / "one", tmp_path / "one", code=2)
    assert "given twice" in twice
    marco(*words, "--validation", "nan", code=2)
    with (tmp_path / "one" / "samples.jsonl").open("a") as file:
        file.write(json.dumps(row.to_json()) + "\n")
    words = ["dataset", "mix", tmp_path / "changed", tmp_path / "one"]
    assert "not as its manifest says: samples.jsonl" in marco(*words, code=2)


def test_what_is_not_taken_of_one_set_is_taken_of_another(marco: Run, tmp_path: Path) -> None:
    chats(tmp_path, marco, 50)
    shutil.copytree(tmp_path / "chat", tmp_path / "same")
    sets = f"{tmp_path / 'chat'}=0.5", tmp_path / "same"
    made = json.loads(marco("dataset", "mix", tmp_path / "all", *sets, "--json"))
    assert made["counts"]["out"] == 100
    dropped = made["counts"]["dropped"]
    assert dropped["weight"] + dropped["duplicate"] == 100 and dropped["weight"] > 20


def test_the_current_folder_is_not_replaced(
    marco: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chat.jsonl").write_text("")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    said = marco("dataset", "instructions", ".", "../chat.jsonl", code=2)
    assert "name a new folder" in said and not list(Path.cwd().iterdir())
