"""A GGUF file (github.com/ggml-org/ggml/blob/master/docs/gguf.md) as a Hugging Face folder.

Read through the `gguf` package, which also knows the quantised types; weights become float32.
Llama's query and key rows are stored in another order there, which is undone. The tokenizer
comes from the metadata: byte-level BPE ("gpt2") or SentencePiece ("llama").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from marco_search.errors import ModelRefused
from marco_search.runtime.embedded.linear import Floats

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is cut before BPE, by tokenizer.ggml.pre, as llama.cpp and the models' own
# tokenizer.json files have it.
_SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [],
    "smollm": [{"type": "Digits", "individual_digits": True}],
    "qwen2": [{"type": "Split", "pattern": {"Regex": _WORDS % ""}}],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": _WORDS % "{1,3}"}}],
}
_SAME_SPLIT = {"default": "gpt-2", "deepseek-r1-qwen": "qwen2", "llama3": "llama-bpe"}


class GgufFile:
    """One file. See `files.ModelFiles`."""

    def __init__(self, path: Path) -> None:
        """Raises ModelRefused if it can't be read, or the package for it is not installed."""
        try:
            import gguf
        except ImportError:
            raise ModelRefused(
                f"{path.name}: GGUF files need the package `gguf`: pip install 'marco-search[gguf]'"
            ) from None
        self.path = path
        self.name = path.stem
        try:
            self._reader = gguf.GGUFReader(path)
        except Exception as error:  # of many kinds: it indexes into what it finds
            raise ModelRefused(f"{path} is not a GGUF file, or damaged: {error}") from None
        self._architecture = str(self._get("general.architecture", "unknown"))

    def weight_files(self) -> list[Path]:
        """The file itself."""
        return [self.path]

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json would say."""

        def of(key: str) -> Any:
            return self._get(f"{self._architecture}.{key}")

        if self._architecture not in ("llama", "qwen2", "qwen3"):
            return {"model_type": self._architecture, "num_experts": of("expert_count")}
        context, window = of("context_length"), of("attention.sliding_window")
        found = {
            "model_type": self._architecture,
            "num_hidden_layers": of("block_count"),
            "hidden_size": of("embedding_length"),
            "intermediate_size": of("feed_forward_length"),
            "num_attention_heads": of("attention.head_count"),
            "num_key_value_heads": of("attention.head_count_kv"),
            "head_dim": of("attention.key_length"),
            "vocab_size": len(self._get("tokenizer.ggml.tokens", [])),
            "max_position_embeddings": context,
            "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
            "num_experts": of("expert_count"),
            "use_sliding_window": bool(window and window < (context or 0)),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "eos_token_id": self._ends(),
            "rope_parameters": self._rope(of),
        }
        return {key: value for key, value in found.items() if value is not None}

    @property
    def generation(self) -> dict[str, Any]:
        """Nothing beyond `config`."""
        return {}

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """The special tokens' texts and the chat template."""
        tokens = self._get("tokenizer.ggml.tokens", [])
        found = {"chat_template": self._get("tokenizer.chat_template")}
        for short, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
            index = self._get(f"tokenizer.ggml.{short}_token_id")
            if index is not None and index < len(tokens):
                found[f"{name}_token"] = tokens[index]
        return {key: value for key, value in found.items() if value is not None}

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """What tokenizer.json would say. Raises ModelRefused for an unknown kind."""
        kind = self._get("tokenizer.ggml.model")
        if kind not in ("gpt2", "llama"):
            raise ModelRefused(
                f"{self.path}: tokenizer {kind!r} is not supported; accepted are 'gpt2' "
                "(byte-level BPE) and 'llama' (SentencePiece)"
            )
        tokens = self._get("tokenizer.ggml.tokens", [])
        types = self._get("tokenizer.ggml.token_type", [])
        added = [
            {"id": i, "content": tokens[i], "special": t == _CONTROL, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for i, t in enumerate(types)
            if t in (_CONTROL, _USER_DEFINED)
        ]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        made = self._byte_level(vocabulary) if kind == "gpt2" else self._sentencepiece(vocabulary)
        return {"version": "1.0", "added_tokens": added, **made}

    def tensors(self) -> dict[str, Floats]:
        """All tensors as float32. Raises ModelRefused for a type that can't be read."""
        from gguf.quants import dequantize

        found = {}
        for name, tensor in self._tensors.items():
            if name == "rope_freqs.weight":  # in the config
                continue
            try:
                values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
            except (NotImplementedError, KeyError, ValueError) as error:
                kind = getattr(tensor.tensor_type, "name", tensor.tensor_type)
                raise ModelRefused(f"{self.path}: tensor {name} of type {kind}: {error}") from None
            found[_hugging_face_name(name)] = self._in_order(name, values)
        return found

    @cached_property
    def _tensors(self) -> Mapping[str, Any]:
        return {tensor.name: tensor for tensor in self._reader.tensors}

    def _get(self, key: str, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def _ends(self) -> list[int]:
        keys = ("eos", "eot", "eom")
        ids = (self._get(f"tokenizer.ggml.{key}_token_id") for key in keys)
        return [token for token in ids if token is not None]

    def _rope(self, of: Any) -> dict[str, Any]:
        # Where only a factor is given, llama.cpp takes it for a linear one.
        factor = of("rope.scaling.factor") or of("rope.scale_linear") or 1
        scaling = of("rope.scaling.type") or ("none" if factor == 1 else "linear")
        head = of("attention.key_length") or of("embedding_length") // of("attention.head_count")
        found = {
            "rope_theta": of("rope.freq_base"),
            "rope_type": "default" if scaling == "none" else scaling,
            "partial_rotary_factor": (of("rope.dimension_count") or head) / head,
        }
        if factors := self._tensors.get("rope_freqs.weight"):
            found |= {"rope_type": "factors", "factors": factors.data.tolist()}
        return found

    def _in_order(self, name: str, values: Floats) -> Floats:
        """Llama's query and key rows back from (0, d/2, 1, d/2 + 1, ...) within each head."""
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        which = heads.get(name.split(".")[-2])
        if self._architecture != "llama" or which is None:
            return values
        count = self.config.get(which) or self.config["num_attention_heads"]
        pairs = values.reshape(count, -1, 2, *values.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)

    def _byte_level(self, vocabulary: dict[str, int]) -> dict[str, Any]:
        pre = self._get("tokenizer.ggml.pre", "default")
        splits = _SPLITS.get(_SAME_SPLIT.get(pre, pre))
        if splits is None:
            accepted = ", ".join([*_SPLITS, *_SAME_SPLIT])
            raise ModelRefused(
                f"{self.path}: tokenizer.ggml.pre is {pre!r}; accepted are {accepted}"
            )
        regex = any(split["type"] == "Split" for split in splits)
        cut = [{"behavior": "Isolated", "invert": False, **split} for split in splits]
        bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        return {
            "normalizer": {"type": "NFC"} if splits is _SPLITS["qwen2"] else None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [*cut, bytes_ | {"use_regex": not regex}],
            },
            "decoder": bytes_ | {"use_regex": True},
            "model": {
                "type": "BPE",
                "vocab": vocabulary,
                "merges": self._get("tokenizer.ggml.merges", []),
                "ignore_merges": splits is _SPLITS["llama-bpe"],
            },
        }

    def _sentencepiece(self, vocabulary: dict[str, int]) -> dict[str, Any]:
        space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        first = {"type": "Prepend", "prepend": "\u2581"}
        steps = [first, space] if self._get("tokenizer.ggml.add_space_prefix", True) else [space]
        unknown = self.tokenizer_config.get("unk_token")
        return {
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
            "model": {
                "type": "BPE",
                "vocab": vocabulary,
                "merges": _merges(vocabulary, self._get("tokenizer.ggml.scores", [])),
                "byte_fallback": True,
                "fuse_unk": True,
                "unk_token": unknown,
            },
        }


def _hugging_face_name(name: str) -> str:
    found = _LAYER.fullmatch(name)
    if found is None or found[2] not in _NAMES:
        raise ModelRefused(f"the tensor {name} is not of a supported architecture")
    layer = "" if found[1] is None else f"model.layers.{found[1]}."
    return f"{layer}{_NAMES[found[2]]}.{found[3]}"


def _merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece's merges, best score first: it merges whatever makes the best token."""
    found = [
        (-scores[index], token, cut)
        for token, index in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    found.sort(key=lambda entry: entry[0])
    return [(token[:cut], token[cut:]) for _, token, cut in found]
