"""A fine-tuning from its configuration to a model's folder, which appears whole or not at all.

OUT/run.json says what the run is; OUT/checkpoints lets it go on; OUT/evaluation has the traces and
reports of `marco eval`. What comes out lies in OUT/NAME, since a folder's name chooses the model's
profile; OUT/model is a link to it, and OUT/report.json says how it went.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import jinja2

from marco_search.errors import InvalidDataSet, InvalidSettings, LocalServiceFailed
from marco_search.learning import manifest
from marco_search.learning.samples import canonical
from marco_search.runtime.embedded.files import fingerprint, open_files
from ops import environment
from ops.bootstrap import ROOT
from ops.finetune.config import STOPPED, Config

LOCKS = [Path(ROOT, "ops", f"requirements-{name}.lock") for name in ("finetune", "torch")]
KINDS = {"sft": "sft", "dpo": "preference"}
"""Of the data sets that a method takes."""
_INSTALL_S = 1800.0
_ENVIRONMENT = {
    "PYTHONPATH": ROOT,
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_METHODS = {"sft": "supervised fine-tuning", "dpo": "DPO (Rafailov et al. 2023)"}


class TrainingStopped(LocalServiceFailed):
    """The training ran out of its time and has a checkpoint: the same command goes on."""

    exit_code = STOPPED


def python() -> Path:
    """The Python with PyTorch and TRL: this one, or the environment's, made if need be."""
    if all(map(importlib.util.find_spec, ("torch", "trl", "peft"))):
        return Path(sys.executable)
    return environment.ensure("finetune", *LOCKS, free_gb=4, build_s=_INSTALL_S)


def finetune(config: Config, *, max_seconds: float | None = None, evaluate: str = "both") -> Path:
    """Train, or go on, and evaluate ("none", "before", "after", "both"); the model's folder.

    Raises InvalidDataSet, InvalidSettings, ModelRefused; TrainingStopped after `max_seconds` of
    training; LocalServiceFailed if the training or an evaluation fails.
    """
    manifests = [_checked(folder, KINDS[config.method]) for folder in config.data]
    out, model, named = config.out, config.out / "model", config.out / config.name
    training = _training(config, manifests)
    begun = _begin(config, training, max_seconds)
    if evaluate in ("before", "both"):
        _evaluate(config, "before", config.model)
    if not named.exists():
        seconds = _train(config, begun.get("seconds", 0.0))
        trained = json.loads((out / "trained.json").read_text()) | {"seconds": seconds}
        (out / "report.json").write_text(json.dumps(trained | training, indent=1))
        part = out / "trained"
        (part / "marco_training.json").write_text(json.dumps(training, indent=1) + "\n")
        (part / "README.md").write_text(model_card(config, training, manifests, trained, {}))
        part.rename(named)
        (out / "trained.json").unlink()
        for name in ("checkpoints", "data", "held-out", "weights", "parent"):
            shutil.rmtree(out / name, ignore_errors=True)
    if not model.exists():
        model.symlink_to(config.name)
    if evaluate in ("after", "both"):
        _evaluate(config, "after", model)
    trained = json.loads((out / "report.json").read_text())
    results = _results(config)
    (model / "README.md").write_text(model_card(config, training, manifests, trained, results))
    return model


def _checked(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a data set. Raises InvalidDataSet unless its hashes hold."""
    found = manifest.read(folder)
    if found["kind"] != kind:
        raise InvalidDataSet(f"{folder}: is a set of kind {found['kind']}, {kind} is needed")
    if broken := manifest.broken(folder, found):
        raise InvalidDataSet(f"{folder}: changed since its manifest was written: {broken}")
    return found


def _training(config: Config, manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The content of marco_training.json."""
    files = open_files(config.model)
    return {
        "parent_model": files.name,
        "parent_revision": fingerprint(files),
        "manifests": list(dict.fromkeys(chain.from_iterable(map(manifest.lineage, manifests)))),
        "config_sha256": hashlib.sha256(canonical(config.decisive())).hexdigest(),
        "method": config.method,
        "seed": config.seed,
    }


def _begin(config: Config, training: dict[str, Any], max_seconds: float | None) -> dict[str, Any]:
    """Write run.json, or find the run that goes on in it."""
    file = config.out / "run.json"
    had = json.loads(file.read_text()) if file.exists() else {}
    if had and had["training"] != training:
        changed = [name for name in training if had["training"].get(name) != training[name]]
        raise InvalidSettings(
            f"{config.out}: holds another run ({', '.join(changed)} differ): name another --out, "
            "or remove it first"
        )
    config.out.mkdir(parents=True, exist_ok=True)
    run: dict[str, Any] = {"config": config.model_dump(mode="json"), "training": training}
    run |= {"max_seconds": max_seconds, "seconds": had.get("seconds", 0.0)}
    file.write_text(json.dumps(run, indent=1))
    return run


def _train(config: Config, seconds: float) -> float:
    """Run train.py; the seconds of this and earlier parts."""
    command = [str(python()), "-m"]
    if config.processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node"]
        command += [str(config.processes), "-m"]
    began = time.monotonic()
    environ = os.environ | _ENVIRONMENT
    done = subprocess.run([*command, "ops.finetune.train", str(config.out)], env=environ)
    seconds += time.monotonic() - began
    file = config.out / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": seconds}, indent=1))
    if done.returncode == STOPPED:
        raise TrainingStopped(f"{config.out}: stopped with a checkpoint: run it again to go on")
    if done.returncode != 0:
        raise LocalServiceFailed(f"the training ended with exit code {done.returncode}, see above")
    return seconds


def _evaluate(config: Config, when: str, model: Path) -> None:
    """`marco eval` on every set; it goes on by itself from the traces that are there."""
    (config.out / "evaluation").mkdir(exist_ok=True)
    for name in config.evaluate.sets:
        report = _report(config, when, name)
        if report.exists():
            continue
        command = [str(Path(sys.executable).with_name("marco")), "eval", name, "--local", "--json"]
        command += [*config.evaluate.options, "--out", str(report.with_suffix(".jsonl"))]
        before = _report(config, "before", name).with_suffix(".jsonl")
        if when == "after" and before.exists():
            command += ["--against", str(before)]
        environ = {**os.environ, "MARCO_MODEL": str(model.resolve())}
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise LocalServiceFailed(f"{' '.join(command)}: exit code {done.returncode}, see above")
        report.write_text(done.stdout)


def _results(config: Config) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, when in product(config.evaluate.sets, ("before", "after")):
        report = _report(config, when, name)
        if report.exists():
            found.setdefault(name, {})[when] = json.loads(report.read_text())
    return found


def _report(config: Config, when: str, name: str) -> Path:
    name = name.replace(":", "-").replace("/", "-")
    return config.out / "evaluation" / f"{when}-{name}.json"


def model_card(
    config: Config,
    training: Mapping[str, Any],
    manifests: Sequence[Mapping[str, Any]],
    trained: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
) -> str:
    """README.md of the model's folder: card.md.j2 filled in.

    Args:
        config: What was asked for.
        training: The content of marco_training.json.
        manifests: Of the data sets, in order.
        trained: What train.py reports.
        results: By set, {"before": report, "after": report} of `marco eval`; one may be missing.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True)
    made.filters["json"] = json.dumps
    return made.get_template("card.md.j2").render(
        methods=_METHODS,
        config=config,
        training=training,
        manifests=manifests,
        trained=trained,
        results=results,
    )
