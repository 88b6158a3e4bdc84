"""Tiny models of every architecture and GGUF type, and what transformers computes for them.

`python -m tests.unit.runtime.embedded_references` writes the references anew. It needs
transformers and torch (the extra finetune) and the package gguf; the tests do not.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny_gguf import write_gguf
from tests.tiny_model import write_model

FILE = Path(__file__).resolve().parents[2] / "data" / "architectures.json"
POSITIONS = (0, 1, 7, 63, 64, 99)
TOKENS = range(0, 330, 30)  # whose log-probs are kept
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
WIDE: dict[str, Any] = {
    "hidden": 256,
    "heads": 4,
    "kv_heads": 2,
    "intermediate_size": 256,
}
FOLDERS: dict[str, dict[str, Any]] = {
    "llama": {"kind": "llama", "tied": False},
    "llama3 rope": {"kind": "llama", "rope_parameters": LLAMA3},
    "qwen2": {"kind": "qwen2"},
    "qwen3": {"kind": "qwen3", "head_dim": 20, "tied": False},
}
GGUFS = {
    **{f"llama {kind}": ("llama", kind) for kind in ("F32", "F16", "BF16", "Q8_0")},
    **{f"qwen2 {kind}": ("qwen2", kind) for kind in ("Q4_0", "Q4_1", "Q6_K")},
    "llama Q4_K": ("llama", "Q4_K"),
    "qwen3 Q8_0": ("qwen3", "Q8_0"),
}
"""By name: architecture and type."""


def ids() -> np.ndarray[Any, np.dtype[np.int64]]:
    """The tokens that every model reads."""
    return np.arange(100) * 7 % 330


def write(name: str, folder: Path) -> Path:
    """Write the model of this name; its path."""
    if name in FOLDERS:
        return write_model(folder / "model", **FOLDERS[name])
    kind, stored = GGUFS[name]
    # The head size that transformers takes for granted in a GGUF file of Qwen3.
    head: dict[str, Any] = {"head_dim": 128} if kind == "qwen3" else {}
    plain = write_model(folder / "plain", kind=kind, **WIDE, **head)
    return write_gguf(folder / "model.gguf", plain, stored)


def theirs(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log-probs of TOKENS after POSITIONS, as transformers computes them."""
    import torch
    import transformers

    options: dict[str, Any] = {}
    if path.suffix == ".gguf":
        options = {
            "gguf_file": path.name,
            "quantization_config": transformers.GgufConfig(dequantize=True),
        }
        path = path.parent
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    with torch.inference_mode():
        found = model.eval()(torch.tensor(ids()[None])).logits[0].double().log_softmax(-1).numpy()
    kept: np.ndarray[Any, np.dtype[np.float64]] = found[list(POSITIONS)][:, list(TOKENS)]
    return kept


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        made = {
            name: theirs(write(name, Path(scratch) / name)).round(5).tolist()
            for name in (*FOLDERS, *GGUFS)
        }
    FILE.write_text(
        "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in made.items()) + "\n}\n"
    )
