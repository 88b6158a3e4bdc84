"""Files of a data set: what is written is read again."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest

from marco_search.errors import InvalidDataSet
from marco_search.learning.samples import Pair, Sample, Writer, read, read_pairs
from marco_search.learning.traces import NodeText, Tree
from marco_search.search.actions import Action
from marco_search.search.branches import Finish, ReflectionPlacement
from marco_search.search.tree import Rollout

SAID = [
    {"role": "user", "content": "7 + 5 是多少？"},
    {"role": "assistant", "content": "<Thought>\n7 + 5 = 12\n</Thought>\n<Output>\n12\n</Output>"},
]


def test_a_data_set_reads_back_as_it_was_written(tmp_path):
    sample = Sample(SAID, "traces", "zh", "default", {"job": "j", "nodes": [1, 2]})
    with Writer(tmp_path) as out:
        for _ in range(700):
            out.write(sample)
    assert out.count == 700
    assert list(read(tmp_path)) == [sample] * 700
    rows = pq.read_table(tmp_path / "samples.parquet").to_pylist()
    assert len(rows) == 700
    assert rows[0]["messages"] == SAID
    assert json.loads(rows[0]["provenance"]) == {"job": "j", "nodes": [1, 2]}
    assert rows[0]["id"] == sample.id == Sample(SAID, "filter", "en").id  # the id is the text's

    pair = Pair(SAID[:1], SAID[1:], SAID[1:], 58, "zh")
    with Writer(tmp_path, "preference") as out:
        out.write(pair)
    assert list(read_pairs(tmp_path)) == [pair]
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    single = json.loads((tmp_path / info["pairs"]["file_name"]).read_text())
    assert single["chosen"] == SAID[1]  # LLaMA-Factory wants a message there, TRL a list of one


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "not a JSON object"),
        ('{"messages": []}', "no field 'source'"),
        (json.dumps(Sample(SAID[:1], "x", "zh").to_json()), "must be the assistant's"),
        (json.dumps(Sample(SAID, "x", "zh").to_json() | {"id": "0"}), "not that of its text"),
        (json.dumps(Sample(SAID, "x", "zh").to_json() | {"tenant": 5}), "tenant: must be a text"),
        (json.dumps(Sample(SAID, "x", "zh").to_json() | {"provenance": '{"a": NaN}'}), "NaN"),
        ("{", "line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    (tmp_path / "samples.jsonl").write_text(line + "\n")
    with pytest.raises(InvalidDataSet, match=reason):
        list(read(tmp_path))


def rollout(number: int, path: tuple[int, ...], answer: str) -> Rollout:
    return Rollout(
        rollout_id=number, round=1, start_id=0, path=path, seed=0, answer=answer, value=0.5,
        reflect=ReflectionPlacement.NO, finish=Finish.STOP, confidence=0.5, path_confidence=0.5,
        generated_tokens=0, prompt_tokens=0, cached_tokens=0, seconds=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(("answer", "mended"), [("2", True), ("1", False)])
def test_a_turn_that_ended_where_another_reflects_is_what_came_before(answer, mended):
    actions = (Action.ROOT, "span", Action.REFLECTION, Action.ANSWER)
    nodes = {
        i: NodeText(job_id=UUID(int=0), node_id=i, action=action, text="")
        for i, action in enumerate(actions)
    }
    ended, reflected = rollout(0, (0, 1), answer), rollout(1, (0, 1, 2, 3), "1")
    winners = tuple(r for r in (ended, reflected) if r.answer == "1")
    about: Any = {"rules": None, "stored": None, "job": None, "config": None, "prompt": ()}
    tree = Tree(**about, nodes=nodes, rollouts=(ended, reflected), winners=winners)
    assert tree.mended(reflected) is mended
