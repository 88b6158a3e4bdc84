"""The pocket model's shape, its optimizers, and its export as a Hugging Face folder.

Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from ops.pocket.tokenizer import CONTEXT, END_OF_TURN, PADDING, save_tokenizer, token_id

ROPE_THETA = 10000.0


def build_model(tokenizer: Tokenizer, seed: int) -> Any:
    """A new Qwen2ForCausalLM in fp32 with tied embeddings (about 1.8 M parameters)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**model_config(tokenizer)))


def build_optimizers(model: torch.nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """[Muon over the matrices of the layers, AdamW over embedding, norms and biases]."""
    named = list(model.named_parameters())
    hidden = [name for name, p in named if p.ndim == 2 and "embed" not in name]
    matrices = [p for name, p in named if name in hidden]
    others = [p for name, p in named if name not in hidden]
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of config.json. Both spellings of rope and dtype: readers differ by age."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "intermediate_size": 512,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
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
    """Write weights in bf16, config, generation config and tokenizer files."""
    save_tokenizer(tokenizer, folder)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = model_config(tokenizer)
    stop, padding = config["eos_token_id"], config["pad_token_id"]
    generation = {"do_sample": True, "temperature": 1.0, "eos_token_id": [stop, padding]}
    for name, content in (
        ("config", config),
        ("generation_config", generation | {"pad_token_id": padding}),
    ):
        text = json.dumps(content, indent=2, sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n")
