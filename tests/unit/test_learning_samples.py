"""Files of a data set: what is written is read again."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from marco_search.errors import InvalidDataSet
from marco_search.learning.samples import Pair, Sample, Writer, read, read_pairs

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
