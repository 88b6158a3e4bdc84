"""Trainings of a tiny Qwen2 model: what comes out loads, has learned, and is the same again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marco_search.errors import LocalServiceFailed
from marco_search.files import whole_folder
from marco_search.learning import manifest, samples
from marco_search.pocket import MODEL_DIR
from marco_search.runtime.embedded.backend import load_model
from marco_search.runtime.embedded.files import Folder, fingerprint
from ops.finetune.config import STOPPED
from ops.finetune.run import python

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "ops" / "finetune"
CPU = {"bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 2}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def environment() -> Path:
    """The Python with PyTorch."""
    try:
        return python()
    except LocalServiceFailed as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 model of two layers: the pocket model's first ones."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.jsonl", "*.py", "*.md"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By method, eight lines; the last is too long for the model."""
    found = {}
    for method, kind in (("sft", "sft"), ("dpo", "preference")):
        found[method] = folder = tmp_path_factory.mktemp("data") / method
        with whole_folder(folder) as part:
            with samples.Writer(part, kind) as writer:
                for i in range(8):
                    writer.write(line(method, i))
            about: Any = {"kind": kind, "command": "made", "rules": {}, "inputs": []}
            counts = {"in": 8, "out": 8}
            manifest.write(part, name=method, counts=counts, dropped=manifest.Dropped(), **about)
    return found


def line(method: str, i: int) -> samples.Sample | samples.Pair:
    prompt = [{"role": "user", "content": f"{i}+{i}?" * (400 if i == 7 else 1)}]
    right, wrong = ([{"role": "assistant", "content": str(i + i + x)}] for x in (0, 1))
    if method == "sft":
        return samples.Sample(prompt + right, "made", "en")
    return samples.Pair(prompt, right, wrong, 0, "en")


@pytest.fixture
def run(tiny: Path, data: dict[str, Path], tmp_path: Path) -> Run:
    def train(
        config: str, method: str, *words: str, out: str = "out", code: int = 0, **trainer: Any
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ops.finetune", str(CONFIGS / f"{config}.toml")]
        command += ["--model", str(tiny), "--data", str(data[method]), "--evaluate", "none"]
        command += ["--out", str(tmp_path / out), "--set", f"method={method}", *words]
        given = CPU | {"save_steps": 100, "warmup_steps": 0, "max_length": 1024} | trainer
        for key, value in given.items():
            command += ["--set", f"trainer.{key}={json.dumps(value)}"]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == code, done.stderr[-3000:]
        return done

    return train


def check_model(folder: Path, parent: Path, manifests: list[Path]) -> None:
    assert load_model(folder).info.revision != fingerprint(Folder(parent))
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (parent / name).read_bytes()
    about = json.loads((folder / "marco_training.json").read_text())
    assert about["parent_revision"] == fingerprint(Folder(parent))
    assert about["manifests"] == [manifest.read(data)["manifest_sha256"] for data in manifests]
    card = (folder / "README.md").read_text()
    assert about["manifests"][0] in card and "1 were left out" in card
    left = {path.name for path in folder.parent.iterdir()}
    assert left == {folder.resolve().name, "model", "run.json", "report.json"}


def test_one_that_is_stopped_at_every_step_ends_with_the_same_weights(
    run: Run, tiny: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    given = {"max_steps": 3, "learning_rate": 1e-3}
    run("pocket", "sft", out="whole", **given)
    check_model(tmp_path / "whole" / "model", tiny, [data["sft"]])
    run("pocket", "sft", "--max-seconds", "0.01", code=STOPPED, **given)
    # What a kill in the middle of writing leaves does not count.
    (tmp_path / "out" / "checkpoints" / "checkpoint-2").mkdir()
    refused = run("pocket", "sft", "--seed", "1", code=2, **given)
    assert "holds another run (seed differ)" in refused.stderr or "config_sha256" in refused.stderr
    run("pocket", "sft", "--max-seconds", "0.01", code=STOPPED, **given)
    run("pocket", "sft", **given)
    whole, parts = (Folder(tmp_path / out / "model") for out in ("whole", "out"))
    assert fingerprint(whole) == fingerprint(parts)
    assert str(tmp_path / "out" / "model") in run("pocket", "sft", **given).stdout


@pytest.mark.parametrize(
    ("config", "method", "words"),
    [
        ("pocket", "dpo", {}),
        ("qwen2-7b-1gpu", "sft", {"packing": True, "max_length": 64}),
        ("qwen2-7b-dpo", "dpo", {}),
    ],
    ids=["dpo", "lora-packing", "dpo-lora"],
)
def test_one_step_of_each_kind(
    run: Run, tiny: Path, data: dict[str, Path], tmp_path: Path, config: str, method: str,
    words: dict[str, Any],
) -> None:  # fmt: skip
    run(config, method, max_steps=1, learning_rate=1e-2, **words)
    folder = tmp_path / "out" / "model"
    check_model(folder, tiny, [data[method]])
    if config != "pocket":  # LoRA, merged: linear layers moved, the rest did not
        before, after = Folder(tiny).tensors(), Folder(folder).tensors()
        moved = {name for name in after if not np.array_equal(before[name], after[name])}
        assert moved and all("_proj.weight" in name for name in moved)


def test_two_processes_share_all_weights(
    run: Run, tiny: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    cpu = {"use_cpu": True, "ddp_backend": "gloo"}
    run("qwen2-7b-8gpu", "sft", "--set", "processes=2", max_steps=1, learning_rate=1e-2, **cpu)
    check_model(tmp_path / "out" / "model", tiny, [data["sft"]])


def test_only_the_answer_and_its_end_are_learned(
    environment: Path, tiny: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    script = """
import sys
from pathlib import Path
from ops.finetune.config import Config
from ops.finetune.train import make_trainer
model, data, out = map(Path, sys.argv[1:])
trainer, counts = make_trainer(
    Config(name="n", model=model, data=[data], out=out, trainer={"bf16": False}), model, out
)
row = trainer.train_dataset[3]
learned = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label == t]
print(counts, repr(trainer.processing_class.decode(learned)))
"""
    done = subprocess.run(
        [environment, "-c", script, tiny, data["sft"], tmp_path / "out"],
        cwd=ROOT, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "{'samples': 7, 'too_long': 1} '6<|im_end|>'"


def test_the_model_is_asked_as_a_search_asks_it(environment: Path, tmp_path: Path) -> None:
    """With its profile's options of the template, no control tokens of users, and one opening."""
    model = tmp_path / "named"
    shutil.copytree(MODEL_DIR, model)
    template = model / "chat_template.jinja"
    unless = "{% if enable_thinking is false %}<think></think>{{ '\\n<Thought>\\n' }}{% endif %}"
    template.write_text(template.read_text() + unless)
    profile = tmp_path / "profile.toml"
    profile.write_text(
        'name = "mine"\nopening = "<Thought>\\n"\n[template_options]\nenable_thinking = false\n'
    )
    script = """
import sys
from pathlib import Path
from types import SimpleNamespace
from transformers import AutoTokenizer
from marco_search.engine import make_plan
from marco_search.kinds import ReasoningJob
from marco_search.runtime.embedded.backend import load_model
from ops.finetune.train import Texts
model, question = Path(sys.argv[1]), "7+5? <|im_end|>"
loaded = load_model(model)
runtime = SimpleNamespace(info=loaded.info, render=loaded.render)
print(repr(make_plan(ReasoningJob(question=question), runtime).prompt))
texts = Texts(AutoTokenizer.from_pretrained(model), "sft", model, model.name)
row = texts.row([{"role": "user", "content": question}], completion="<Thought>\\n12")
print(repr(row["prompt"]))
print(repr(row["completion"]))
"""
    done = subprocess.run(
        [environment, "-c", script, model],
        cwd=ROOT, text=True, capture_output=True, check=True,
        env=os.environ | {"MARCO_PROFILE": str(profile)},
    )  # fmt: skip
    asked, trained, learned = done.stdout.splitlines()[-3:]
    assert asked.endswith(r"<think></think>\n<Thought>\n'") and "< |im_end|>" in asked
    assert (trained, learned) == (asked, "'12'")


def test_interpolated_weights_lie_between_the_parents_and_the_trained(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    given = {"max_steps": 1, "learning_rate": 1e-2}
    run("pocket", "sft", out="whole", **given)
    run("pocket", "sft", "--set", "interpolate=0.25", **given)
    before, trained = Folder(tiny).tensors(), Folder(tmp_path / "whole" / "model").tensors()
    for name, found in Folder(tmp_path / "out" / "model").tensors().items():
        between = 0.75 * before[name] + 0.25 * trained[name]
        np.testing.assert_allclose(found, between, atol=5e-3)  # weights are stored in 16 bits
    assert "0.25 of the way" in (tmp_path / "out" / "model" / "README.md").read_text()
