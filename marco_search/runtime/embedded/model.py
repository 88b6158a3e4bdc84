"""Opens a model folder: everything that is needed to decode, checked, and what it is called."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import marco_search
from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.embedded.blas import blas_name, one_blas_thread
from marco_search.runtime.embedded.chat import ChatTemplate, read_chat_template
from marco_search.runtime.embedded.config import ModelConfig, read_config
from marco_search.runtime.embedded.decoder import Decoder, Part
from marco_search.runtime.embedded.safetensors import fingerprint, read_folder
from marco_search.runtime.embedded.tokenizer import Tokenizer, end_of_turn, read_tokenizer
from marco_search.runtime.embedded.weights import arrange


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A folder, ready to decode. The decoder serves one engine."""

    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    decoder: Decoder
    info: RuntimeInfo


def load_model(folder: Path) -> LoadedModel:
    """Load a Qwen2-architecture folder in Hugging Face format.

    Raises ModelRefused, which says what was found and what is accepted.
    """
    with one_blas_thread():
        return _load(folder.resolve())


def _load(folder: Path) -> LoadedModel:
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config.vocab)
    end = end_of_turn(folder, tokenizer)
    if end is not None:
        config = replace(config, eos_ids=tuple(sorted({*config.eos_ids, end})))
    template = read_chat_template(folder)
    decoder = Decoder(config, arrange(read_folder(folder), config))
    info = RuntimeInfo(
        name="embedded",
        version=f"{marco_search.__version__}+{_arithmetic(decoder)}",
        model=folder.name,
        revision=fingerprint(folder),
        context_tokens=config.context_tokens,
    )
    return LoadedModel(config, tokenizer, template, decoder, info)


def _arithmetic(decoder: Decoder) -> str:
    """numpy's version, its BLAS, and a short hash of what these compute for a fixed input.

    Processors sum in different orders, so the last bits differ between kinds of them. Where
    this is the same, a replay gives the same bits.
    """
    ids = np.arange(8) % decoder.config.vocab
    decoder.slots.reserve(1, len(ids))
    (logits,) = decoder.prefill([Part(0, 0, ids)], [range(len(ids))])
    digest = hashlib.sha256(logits.tobytes()).hexdigest()[:8]
    return f"numpy{np.__version__}.{blas_name()}.{digest}"
