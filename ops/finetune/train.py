"""One training: `python -m ops.finetune.train FOLDER`, in the environment that has PyTorch.

FOLDER has run.json (what to do, see run.py). Checkpoints come into FOLDER/checkpoints, and a
training that was stopped goes on from the last of them. At the end the weights, LoRA merged, lie
in FOLDER/trained beside trained.json; where a text begins to count in the loss is TRL's
prompt-completion form: neither depends on marks in the chat template.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from marco_search.engine import profile_of, rendered
from marco_search.errors import InvalidDataSet, InvalidSettings, MarcoError
from marco_search.jobs import SearchOptions
from marco_search.learning import samples
from marco_search.runtime.chat import read_chat_template
from marco_search.runtime.embedded.files import open_files
from marco_search.search.branches import Message
from ops.finetune.config import STOPPED, Config

_COPIED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model",
)  # fmt: skip
_DEFAULTS = {"logging_first_step": True, "logging_steps": 10, "save_total_limit": 2}
_TRAINERS = {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer)}


class Deadline(TrainerCallback):  # type: ignore[misc]
    """Stops with a checkpoint at the first step after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.passed = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint and the end, unless this is the end anyway."""
        if time.monotonic() > self.end and state.global_step < state.max_steps:
            self.passed = control.should_save = control.should_training_stop = True


class Texts:
    """The texts that a model is given and writes, of samples or pairs."""

    def __init__(self, tokenizer: Any, method: str, parent: Path, name: str) -> None:
        """`name`: what the model will be called, which chooses the profile that it is asked by."""
        self.tokenizer, self.method, self.name = tokenizer, method, name
        self.profile = profile_of(SearchOptions(), name)
        self.template = read_chat_template(open_files(parent))

    def rows(self, places: list[Path]) -> Iterator[dict[str, Any]]:
        """{"prompt", "completion"} of samples, or {"prompt", "chosen", "rejected"} of pairs.

        With "tokens", those of the prompt and the longer answer. `places`: folders of data sets,
        or files of one.
        """
        for place in places:
            for row in self._samples(place) if self.method == "sft" else self._pairs(place):
                prompt, *answers = (len(self.tokenizer(text).input_ids) for text in row.values())
                yield row | {"tokens": prompt + max(answers) + 1}  # the end of the turn

    def _samples(self, place: Path) -> Iterator[dict[str, str]]:
        for sample in samples.read(place):
            yield self.row(sample.prompt, completion=sample.response)

    def _pairs(self, place: Path) -> Iterator[dict[str, str]]:
        for pair in samples.read_pairs(place):
            answers = {"chosen": pair.chosen, "rejected": pair.rejected}
            turns = {name: messages[-1]["content"] for name, messages in answers.items()}
            yield self.row(pair.prompt, **turns)

    def row(self, messages: Sequence[samples.Message], **turns: str) -> dict[str, str]:
        """The prompt as a search gives it to the model, and the turns that follow it."""
        chat = [Message(role=m["role"], content=m["content"]) for m in messages]
        prompt = rendered(chat, self.profile, self.template, self.name)
        opening = self.profile.opening
        if opening and prompt.rstrip().endswith(opening.rstrip()):
            turns = {name: turn.removeprefix(opening) for name, turn in turns.items()}
        # TRL has the tokenizer add it once more.
        bos = self.tokenizer.bos_token if self.tokenizer("").input_ids else None
        return {"prompt": prompt.removeprefix(bos or ""), **turns}


def main(folder: Path) -> int:
    """Train. Returns the exit code."""
    job = json.loads((folder / "run.json").read_text())
    config = Config.model_validate(job["config"])
    parent = _unpacked(config.model, folder / "parent")
    trainer, counts = make_trainer(config, parent, folder)
    trainer.add_callback(deadline := Deadline(job["max_seconds"] or float("inf")))
    losses = {"validation_before": trainer.evaluate()["eval_loss"]} if trainer.eval_dataset else {}
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder / "checkpoints"))
    if deadline.passed:
        return STOPPED
    if losses:
        losses["validation_after"] = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(folder / "weights"))
    if trainer.is_world_process_zero():
        _save(config, parent, folder)
        about = {
            **counts,
            "steps": trainer.state.global_step,
            "parameters": trainer.model.num_parameters(),
            "trained_parameters": trainer.model.num_parameters(only_trainable=True),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(),
            "losses": losses,
            "log": trainer.state.log_history,
        }
        (folder / "trained.json").write_text(json.dumps(about, indent=1))
    return 0


def make_trainer(config: Config, parent: Path, folder: Path) -> tuple[Any, dict[str, int]]:
    """(TRL's trainer, how many "samples" it has and how many were "too_long").

    Raises InvalidSettings, InvalidDataSet.
    """
    kind, trainer_class = _TRAINERS[config.method]
    ours = {"output_dir": str(folder / "checkpoints"), "seed": config.seed}
    ours |= {"data_seed": config.seed, "report_to": "none", "disable_tqdm": True}
    try:
        arguments = kind(**{**_DEFAULTS, **config.trainer, **ours})
    except (TypeError, ValueError) as error:
        raise InvalidSettings(f"trainer: {error}") from None
    tokenizer = AutoTokenizer.from_pretrained(parent)
    texts = Texts(tokenizer, config.method, parent, config.name)
    lines = _data(texts, config.data, folder / "data")
    short = data = _short(lines, arguments.max_length)
    if config.samples:
        data = data.shuffle(seed=config.seed).select(range(min(config.samples, len(data))))
    split = [file for place in config.data if (file := place / "validation.jsonl").exists()]
    held_out = _data(texts, split, folder / "held-out") if split else None
    trainer = trainer_class(
        model=str(parent),
        args=arguments,
        train_dataset=data,
        eval_dataset=held_out and _short(held_out, arguments.max_length),
        processing_class=tokenizer,
        peft_config=_lora(config),
    )
    return trainer, {"samples": len(data), "too_long": len(lines) - len(short)}


def _data(texts: Texts, places: list[Path], cache: Path) -> Dataset:
    # One process reads, the others take what it has written, as a training that goes on does: the
    # cache is the run's own, and what was read is known to be the same.
    with PartialState().main_process_first():
        return Dataset.from_generator(
            texts.rows,
            gen_kwargs={"places": places},
            cache_dir=str(cache),
            fingerprint=cache.name,
        )


def _short(data: Dataset, limit: int | None) -> Dataset:
    with PartialState().main_process_first():
        found = data.filter(lambda tokens: limit is None or tokens <= limit, input_columns="tokens")
    if not len(found):
        raise InvalidDataSet(f"no sample of at most {limit} tokens (trainer.max_length)")
    return found.remove_columns("tokens")


def _lora(config: Config) -> LoraConfig | None:
    return config.lora and LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.modules,
    )


def _last_checkpoint(folder: Path) -> str | None:
    """The last whole one: trainer_state.json is written last."""
    found = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(found, key=lambda path: int(path.name.split("-")[1]))) if found else None


def _save(config: Config, parent: Path, folder: Path) -> None:
    """Write FOLDER/trained: the weights in the parent's type, all other files as the parent has."""
    dtype = AutoConfig.from_pretrained(parent).dtype or torch.float32
    source = parent if config.lora else folder / "weights"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if config.lora:
        model = PeftModel.from_pretrained(model, str(folder / "weights")).merge_and_unload()
    if config.interpolate < 1:
        _interpolate(model, parent, config.interpolate)
    model.to(dtype).save_pretrained(folder / "trained")
    for path in (folder / "trained").iterdir():
        path.chmod(0o644)  # safetensors leaves them to their owner
    for name in _COPIED:
        if (parent / name).exists():
            shutil.copyfile(parent / name, folder / "trained" / name)


def _interpolate(model: Any, parent: Path, share: float) -> None:
    """Leave the weights this share of the way from the parent's to the trained."""
    before = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    parameters = dict(before.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():  # a tied one once
            weight.copy_(parameters[name].lerp(weight, share))


def _unpacked(model: Path, folder: Path) -> Path:
    """The folder of a model; that of a GGUF file is made, with its weights in 32 bits."""
    if model.is_dir():
        return model
    weights = folder / "model.safetensors"
    with PartialState().main_process_first():
        if not weights.exists():
            folder.mkdir(exist_ok=True)
            files = open_files(model)
            # What a GGUF file does not tell, and other readers ask for.
            architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[files.config["model_type"]]
            contents = {
                "config": {"architectures": [architecture], "torch_dtype": "float32"},
                "generation_config": files.generation,
                "tokenizer": files.tokenizer,
                "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
            }
            contents["config"] |= files.config
            contents["tokenizer_config"] |= files.tokenizer_config
            for name, content in contents.items():
                (folder / f"{name}.json").write_text(json.dumps(content))
            tensors = {k: torch.from_numpy(v.copy()) for k, v in files.tensors().items()}
            save_file(tensors, folder / "part", metadata={"format": "pt"})
            (folder / "part").rename(weights)
    return folder


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except MarcoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
