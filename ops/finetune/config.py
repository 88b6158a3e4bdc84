"""The configuration of a fine-tuning: a TOML file, and words of the command line over it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from marco_search.errors import InvalidSettings

STOPPED = 75
"""Exit code: stopped with a checkpoint, run it again (sysexits' EX_TEMPFAIL)."""
# What the program itself sets: they belong to a key of the file, or would break going on.
_OURS = {
    "output_dir", "seed", "data_seed", "resume_from_checkpoint", "report_to", "push_to_hub",
    "disable_tqdm", "load_best_model_at_end", "save_only_model", "eos_token", "chat_template_path",
    "completion_only_loss", "assistant_only_loss", "dataset_kwargs", "shuffle_dataset",
}  # fmt: skip


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(_Table):
    """LoRA (Hu et al. 2021): low-rank updates, which are merged into the weights at the end."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    modules: str | list[str] = "all-linear"
    """Names of the layers, or all linear ones but the head."""


class Evaluate(_Table):
    """What `marco eval` is given, before and after."""

    sets: list[str] = []
    options: list[str] = ["--strategy", "cot", "--temperature", "0"]


class Config(_Table):
    """What decides the weights is in `decisive`; the rest says where things are."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Of the model's folder. It chooses the profile: that of "pocket-1" is the pocket model's."""
    model: Path
    """The parent: a Hugging Face folder or a GGUF file."""
    data: list[Path] = Field(min_length=1)
    """Folders of data sets, one after the other: samples for sft, pairs for dpo. The loss on those
    split off as validation.jsonl is reported."""
    out: Path
    method: Literal["sft", "dpo"] = "sft"
    seed: int = Field(0, ge=0, lt=2**32)
    samples: int | None = Field(None, ge=1)
    """So many of the data at most, drawn with the seed."""
    processes: int = Field(1, ge=1)
    """GPUs of this machine, one process each."""
    lora: Lora | None = None
    """None: all weights are trained."""
    interpolate: float = Field(1.0, gt=0, le=1)
    """How far the weights go from the parent's (0) to the trained (1), on the straight line between
    them: WiSE-FT (Wortsman et al. 2022)."""
    trainer: dict[str, Any] = {}
    """Arguments of TRL's SFTConfig or DPOConfig, by their names there."""
    evaluate: Evaluate = Evaluate()

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """The file with `overrides` ("trainer.max_steps": 1) over it.

        Raises InvalidSettings naming file and key.
        """
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidSettings(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        for key, value in (overrides or {}).items():
            *tables, last = key.split(".")
            table = data
            for name in tables:
                table = table.setdefault(name, {})
                if not isinstance(table, dict):
                    raise InvalidSettings(f"{key}: {name} is no table")
            table[last] = value
        try:
            config = cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise InvalidSettings(f"{path}: {place}: {first['msg']}") from None
        if taken := _OURS & config.trainer.keys():
            raise InvalidSettings(f"{path}: trainer.{min(taken)} is set by the program itself")
        return config

    def decisive(self) -> dict[str, Any]:
        """What, with the parent's weights and the data, decides the weights that come out."""
        rest = {"name", "model", "data", "out", "evaluate"}
        return self.model_dump(mode="json", exclude=rest)
