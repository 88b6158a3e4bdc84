"""The training script resumes exactly, and its batches mask what must not be learned.

Runs where torch and transformers are installed (the extra finetune).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from ops.pocket.problems import Segment
from ops.pocket.samples import Sample
from ops.pocket.tokenizer import build_tokenizer, user_prompt
from ops.pocket.train import batches, encode_sample

ROOT = Path(__file__).resolve().parents[2]


def run(out: Path, *options: str) -> None:
    command = [sys.executable, "-m", "ops.pocket.train", "--out", str(out), "--ranks", "1"]
    command += ["--steps", "4", "--save-every", "2", "--tokens", "600", *options]
    subprocess.run(command, cwd=ROOT, check=True)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    run(tmp_path)
    final = tmp_path / "final" / "model.safetensors"
    whole = final.read_bytes()
    final.unlink()
    run(tmp_path, "--resume")
    assert final.read_bytes() == whole


def test_prompt_padding_and_slips_are_not_learned() -> None:
    tokenizer = build_tokenizer(samples=500)
    slip = Sample("reflection", "Hi", (Segment("<Thought>\n"), Segment("1", False), Segment("\n2")))
    ids, learned = encode_sample(tokenizer, slip)
    taught = [i for i, flag in zip(ids, learned, strict=True) if flag]
    assert tokenizer.decode(taught, skip_special_tokens=False) == "<Thought>\n\n2<|im_end|>"
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    assert whole == user_prompt("Hi") + "<Thought>\n1\n2<|im_end|>"
    batch = next(batches(tokenizer, seed=0, rank=0, tokens=600))
    assert batch.ids.shape == batch.learned.shape
    assert batch.ids.numel() <= 1024 and int(batch.learned.sum()) < batch.tokens
