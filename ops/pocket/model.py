"""The pocket model's shape, and its export as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from ops.pocket.tokenizer import CONTEXT, END_OF_TURN, PADDING, save_tokenizer, token_id

HIDDEN, LAYERS, INTERMEDIATE, HEADS, KV_HEADS = 192, 4, 512, 6, 2
ROPE_THETA = 10000.0


def build_model(tokenizer: Tokenizer, seed: int) -> Any:
    """A fresh Qwen2ForCausalLM in fp32 with tied embeddings (about 1.8 M parameters)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**hugging_face_config(tokenizer)))


def hugging_face_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of config.json. Both spellings of rope and dtype: readers differ by age."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": CONTEXT,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": token_id(tokenizer, END_OF_TURN),
        "pad_token_id": token_id(tokenizer, PADDING),
        "torch_dtype": "bfloat16",
    }


def export_model(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes weights in bf16, config, generation config and tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    _write_json(folder / "config.json", hugging_face_config(tokenizer))
    stop = [token_id(tokenizer, END_OF_TURN), token_id(tokenizer, PADDING)]
    generation = {"do_sample": True, "temperature": 1.0, "eos_token_id": stop}
    _write_json(folder / "generation_config.json", {**generation, "pad_token_id": stop[1]})
    save_tokenizer(tokenizer, folder)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
