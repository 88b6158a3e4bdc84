"""A model on disk: a Hugging Face folder or a GGUF file, seen alike.

A safetensors file (huggingface.co/docs/safetensors) is an 8-byte little-endian header length,
a JSON header (name -> dtype, shape, byte range), then the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from marco_search.errors import ModelRefused
from marco_search.jobs.validation import explain
from marco_search.runtime.base import Training
from marco_search.runtime.embedded.gguf_file import GgufFile
from marco_search.runtime.embedded.linear import Floats
from marco_search.text import one_line

TRAINING = "marco_training.json"
_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_BYTES_OF = {"F32": 4, "F16": 2, "BF16": 2}
_HEADER_LIMIT_BYTES = 100_000_000


def open_files(path: Path) -> ModelFiles:
    """The model at `path`. Raises ModelRefused if that is neither a folder nor a GGUF file."""
    path = path.resolve()
    if path.suffix == ".gguf" and path.is_file():
        return GgufFile(path)
    if not path.is_dir():
        raise ModelRefused(
            f"{path} is neither a folder nor a .gguf file: MARCO_MODEL names a Hugging Face model "
            "folder or a GGUF file (`hf download NAME --local-dir FOLDER` makes one), or an "
            "installed model (`marco model list`)"
        )
    return Folder(path)


def fingerprint(files: ModelFiles) -> str:
    """sha256, in hex, over the weight files' bytes in name order."""
    digest = hashlib.sha256()
    for file in files.weight_files():
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def training_of(path: Path) -> Training | None:
    """What the model in this folder was trained from, or what such a file says; None: nothing.

    Raises ModelRefused for a file that can't be read: the trail would say less than is known.
    """
    file = path / TRAINING if path.is_dir() else path
    if file.suffix != ".json" or not (data := read_json(file, required=False)):
        return None
    try:
        return Training.model_validate(data)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {explain(e)}" for e in error.errors())
        raise ModelRefused(
            f"{file} does not say what the model was trained from ({one_line(wrong)[:300]}): "
            "correct it, or remove it"
        ) from None


class Folder:
    """The files of one folder, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json. Raises ModelRefused if it can't be read."""
        return read_json(self.path / "config.json")

    @cached_property
    def generation(self) -> dict[str, Any]:
        """generation_config.json, {} if there is none."""
        return read_json(self.path / "generation_config.json", required=False)

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json. Raises ModelRefused if it can't be read."""
        return read_json(self.path / "tokenizer.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json with the template of chat_template.jinja, where it is, in it."""
        config = read_json(self.path / "tokenizer_config.json", required=False)
        template = self.path / "chat_template.jinja"
        if template.is_file():
            config["chat_template"] = template.read_text(encoding="utf-8")
        return config

    def weight_files(self) -> list[Path]:
        """The weight files in name order: the whole one, or the shards of an index.

        An index beside a whole file is what a model was converted from, or a left-over: as
        with transformers, the file counts.
        Raises ModelRefused when there are none or a shard is missing.
        """
        files, index = [self.path / _WHOLE], self.path / _INDEX
        if not files[0].is_file() and index.is_file():
            try:
                names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ModelRefused(f"{index} is not a safetensors index: {error!r}") from None
            files = [self.path / Path(name).name for name in sorted(names)]
        missing = [f.name for f in files if not f.is_file()]
        if missing:
            raise ModelRefused(
                f"no {', '.join(missing)} in {self.path}: weights are read from {_WHOLE}, or "
                f"from the shards named in {_INDEX}"
            )
        return files

    def tensors(self) -> dict[str, Floats]:
        """All tensors as float32, by name. Raises ModelRefused for a missing or damaged file."""
        found: dict[str, Floats] = {}
        for file in self.weight_files():
            found.update(read_tensors(file))
        return found


ModelFiles = Folder | GgufFile
"""What the engine reads of a model, in the shapes of a Hugging Face folder: `config` and
`generation` (config.json and generation_config.json), `tokenizer` and `tokenizer_config`, the
latter with the chat template, and the weights. All raise ModelRefused for what is missing or
damaged."""


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """The JSON object in `path`; {} for a missing file that is not required."""
    if not required and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelRefused(
            f"no {path.name} in {path.parent}: a Hugging Face model folder has one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelRefused(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelRefused(f"{path} holds no JSON object")
    return value


def read_tensors(path: Path) -> dict[str, Floats]:
    """The tensors of one file as float32, by name. Raises ModelRefused for a damaged file."""
    data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size >= 8 else np.empty(0, "u1")
    size = int(data[:8].view("<u8")[0]) if data.size else 0
    if not 2 <= size <= min(data.size - 8, _HEADER_LIMIT_BYTES):
        raise ModelRefused(f"{path} is not a safetensors file (is it a Git LFS pointer?)")
    try:
        header = json.loads(data[8 : 8 + size].tobytes())
        header.pop("__metadata__", None)
        return {name: _tensor(name, entry, data[8 + size :]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{path} is a damaged safetensors file: {error}") from None


def _tensor(name: str, entry: dict[str, Any], body: npt.NDArray[np.uint8]) -> Floats:
    dtype, shape = entry["dtype"], [int(n) for n in entry["shape"]]
    start, end = (int(n) for n in entry["data_offsets"])
    if dtype not in _BYTES_OF:
        raise ModelRefused(
            f"tensor {name} has type {dtype}; accepted are {', '.join(_BYTES_OF)} "
            "(quantised weights are read from GGUF files only)"
        )
    wanted = int(np.prod(shape, dtype=np.int64)) * _BYTES_OF[dtype]
    if not 0 <= start <= end <= body.size or end - start != wanted:
        raise ValueError(f"tensor {name} does not fit its byte range")
    raw = np.ascontiguousarray(body[start:end])
    if dtype == "BF16":  # the upper half of a float32
        values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = raw.view("<f4" if dtype == "F32" else "<f2").astype(np.float32)
    return values.reshape(shape)
