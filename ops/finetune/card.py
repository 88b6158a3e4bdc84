"""The model card of a fine-tuned model: README.md of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ops.finetune.config import Config

_METHODS = {"sft": "supervised fine-tuning", "dpo": "DPO (Rafailov et al. 2023)"}


def text(
    config: Config,
    training: Mapping[str, Any],
    manifests: Sequence[Mapping[str, Any]],
    trained: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
) -> str:
    """Markdown.

    Args:
        config: What was asked for.
        training: The content of marco_training.json.
        manifests: Of the data sets, in order.
        trained: What train.py reports.
        results: By set, {"before": report, "after": report} of `marco eval`; one may be missing.
    """
    how = "all weights" if config.lora is None else f"LoRA {json.dumps(config.lora.model_dump())}"
    header = {"base_model": training["parent_model"], "library_name": "transformers"}
    header |= {"pipeline_tag": "text-generation"}
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---"]
    lines += [f"# {config.name}", ""]
    lines += [f"{training['parent_model']} after {_METHODS[config.method]}, {how}.", ""]
    lines += [f"Parent: revision (SHA-256 of the weights) `{training['parent_revision']}`."]
    lines += ["Its licence holds for this model, too, beside those of the data.", ""]
    lines += ["## Data", "", "| data set | lines | made by | manifest |", "|---|---|---|---|"]
    for manifest in manifests:
        made, count = manifest.get("command", ""), manifest["counts"]["out"]
        lines += [f"| {manifest['name']} | {count} | `{made}` | `{manifest['manifest_sha256']}` |"]
    lines += ["", f"{trained['samples']} samples were trained on, of which the last turn counts."]
    lines[-1] += f" {trained['too_long']} were left out: longer than `max_length`."
    lines += ["", "## Training", "", "```json", json.dumps(config.decisive(), indent=1), "```", ""]
    minutes, peak = trained["seconds"] / 60, trained["peak_memory_bytes"] / 1e9
    share = f"{trained['trained_parameters']:,} of {trained['parameters']:,} parameters"
    lines += [f"{trained['steps']} steps, {share}, {minutes:.1f} minutes, {peak:.2f} GB of memory"]
    lines[-1] += f" at the peak. Loss: {_losses(trained)}."
    if results:
        lines += ["", "## Evaluation", "", f"`marco eval {' '.join(config.evaluate.options)}`", ""]
        lines += ["| set | before | after | difference |", "|---|---|---|---|"]
    for name, reports in results.items():
        cells = [_accuracy(reports.get(when)) for when in ("before", "after")]
        cells += [_difference(reports.get("after", {}).get("against"))]
        lines += [f"| {name} | {' | '.join(cells)} |"]
    if results:
        lines += ["", "In brackets 95 % intervals, paired for the difference."]
    return "\n".join(lines) + "\n"


def _losses(trained: Mapping[str, Any]) -> str:
    steps = [entry["loss"] for entry in trained["log"] if "loss" in entry]
    ends = [f"first {steps[0]:.4f}, last {steps[-1]:.4f}"]
    rest = [f"{k.replace('_', ' ')} {value:.4f}" for k, value in trained["losses"].items()]
    return ", ".join(ends + rest)


def _accuracy(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "not measured"
    (found,) = report["results"].values()
    return f"{found['accuracy']:.3f} [{found['low']:.3f}, {found['high']:.3f}], n = {found['n']}"


def _difference(against: Mapping[str, Any] | None) -> str:
    if against is None:
        return "not measured"
    found = against["accuracy"]
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
