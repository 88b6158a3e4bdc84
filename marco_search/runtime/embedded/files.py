"""A model on disk: a Hugging Face folder or a GGUF file, seen alike."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from marco_search.errors import ModelRefused
from marco_search.runtime.base import Training
from marco_search.runtime.embedded.folder import Folder, read_json
from marco_search.runtime.embedded.gguf_file import GgufFile
from marco_search.runtime.embedded.linear import Floats
from marco_search.text import one_line


class ModelFiles(Protocol):
    """What the engine reads of a model, in the shapes of a Hugging Face folder.

    config, generation: config.json and generation_config.json; tokenizer: tokenizer.json;
    tokenizer_config: tokenizer_config.json, with the chat template. All raise ModelRefused for
    what is missing or damaged.
    """

    path: Path
    name: str

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def generation(self) -> dict[str, Any]: ...
    @property
    def tokenizer(self) -> dict[str, Any]: ...
    @property
    def tokenizer_config(self) -> dict[str, Any]: ...

    def weight_files(self) -> list[Path]:
        """The files with the weights, in name order."""

    def tensors(self) -> dict[str, Floats]:
        """All tensors as float32, named and shaped as in a Hugging Face folder."""


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


TRAINING = "marco_training.json"


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
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ModelRefused(
            f"{file} does not say what the model was trained from ({one_line(wrong)[:300]}): "
            "correct it, or remove it"
        ) from None
