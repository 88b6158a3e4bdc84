"""TRL and Hugging Face's datasets read the files of data sets, in the environment that has them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from marco_search import pocket
from marco_search.learning.samples import Pair, Sample, Writer
from ops import environment
from ops.finetune.run import LOCKS

SCRIPT = """
import json, sys
from datasets import load_dataset
from transformers import AutoTokenizer
from trl.data_utils import is_conversational, maybe_apply_chat_template
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
found = {}
for file in sys.argv[2:]:
    kind = "parquet" if file.endswith("parquet") else "json"
    rows = load_dataset(kind, data_files=file, split="train")
    row = rows[0]
    texts = maybe_apply_chat_template(
        {k: row[k] for k in ("messages", "prompt", "chosen", "rejected") if k in row}, tokenizer)
    found[file] = [len(rows), is_conversational(row), texts]
print(json.dumps(found))
"""
SAID = [{"role": "user", "content": "7 + 5?"}, {"role": "assistant", "content": "It is 12."}]
OTHER = [{"role": "assistant", "content": "It is 13."}]


@pytest.mark.timeout(600)  # PyTorch takes its time to load
def test_trl_reads_samples_and_pairs(tmp_path: Path) -> None:
    python = environment.folder("finetune", *LOCKS) / "bin" / "python"
    if not python.exists():
        pytest.skip("no environment with TRL: `python -m ops.finetune --environment` makes it")
    # More than the ten megabytes from which the types of columns are taken, of two sources.
    long = {"role": "user", "content": "x" * 20_000}
    with Writer(tmp_path) as out:
        out.write(Sample(SAID, "filter", "en", None, {"file": "f", "line": 1}))
        for n in range(600):
            out.write(Sample([long, SAID[1]], "filter", "en", None, {"file": "f", "line": n}))
        out.write(
            Sample(SAID, "traces", "zh", "acme", {"job": "j", "nodes": [1], "verified": True})
        )
    with Writer(tmp_path, "preference") as out:
        out.write(Pair(SAID[:1], SAID[1:], OTHER, 6, "en", None, {"job": "j", "fork": None}))
    names = [f"{kind}.{end}" for kind in ("samples", "pairs") for end in ("jsonl", "parquet")]
    done = subprocess.run(
        [python, "-c", SCRIPT, str(pocket.MODEL_DIR), *(str(tmp_path / name) for name in names)],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in names:
        count, conversational, texts = found[str(tmp_path / name)]
        assert (count, conversational) == (1 if "pairs" in name else 602, True)
        assert "7 + 5?" in (texts.get("text") or texts["prompt"])
        assert "It is 12." in (texts.get("text") or texts["chosen"])
        assert "pairs" not in name or "It is 13." in texts["rejected"]
