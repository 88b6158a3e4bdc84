"""The model's BPE tokenizer, byte-level or SentencePiece, and the exact bytes of every token.

Text is encoded by the `tokenizers` library from the model's tokenizer.json. Decoding is done
here, from bytes: a character may be split over tokens, and only bytes tell which token
completes it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from marco_search.errors import ModelRefused
from marco_search.runtime.chat import token_text
from marco_search.runtime.embedded.files import ModelFiles

TokenIds = npt.NDArray[np.int32]
_SPACE = "\u2581"  # SentencePiece's
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # and its single bytes
_ENCODED_KEPT = 512  # the branches of a fork all ask for the same prefix


class Tokenizer:
    """Encodes text, and gives each token's bytes. Thread-safe."""

    def __init__(self, files: ModelFiles, vocab: int) -> None:
        """Raises ModelRefused if the tokenizer does not fit a model of `vocab` tokens."""
        raw = files.tokenizer
        byte_level = _is_byte_level(files.path, raw)
        self._tokenizer = _library_tokenizer(files.path, raw)
        inside = _without_first_space(raw)
        self._inside = self._tokenizer
        if inside != raw:
            self._inside = _library_tokenizer(files.path, inside)
        added = raw.get("added_tokens") or []
        count = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        if count > vocab:
            raise ModelRefused(
                f"{files.path}: the tokenizer has {count} tokens, the model only "
                f"{vocab}: tokenizer and weights belong to different models"
            )
        self.token_bytes = _token_bytes(self._tokenizer, added, byte_level)
        self._texts = [b.decode("utf-8", "replace") for b in self.token_bytes]
        for entry in added:
            self._texts[entry["id"]] = entry["content"]
        #: Encodes a text, or one that goes on `inside` another; markers such as <|im_start|>
        #: become their tokens.
        self.encode = lru_cache(_ENCODED_KEPT)(self._encode)
        end = token_text(files.tokenizer_config.get("eos_token"))
        #: The token that ends a turn of a chat model: some say so nowhere else.
        self.end_of_turn = None if end is None else self.id_of(end)

    def _encode(self, text: str, inside: bool = False) -> TokenIds:
        tokenizer = self._inside if inside else self._tokenizer
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        ids.flags.writeable = False
        return ids

    def id_of(self, text: str) -> int | None:
        """The id of the token that is exactly `text`, usually a marker; None if there is none."""
        return self._tokenizer.token_to_id(text)

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes; none for a special token, or an id that has no token."""
        return self.token_bytes[token] if token < len(self.token_bytes) else b""

    def alone(self, token: int) -> str:
        """A token's text by itself: parts of characters show as U+FFFD, specials by name."""
        return self._texts[token] if token < len(self._texts) else ""

    def pieces(self, tokens: Iterable[int]) -> list[str]:
        """The text each token completes: "" inside a character, all of it at its last byte.

        Bytes that are not UTF-8 become U+FFFD. Joined they are the tokens' text, less an
        unfinished character at the end.
        """
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        return [decode(self.bytes_of(t)) for t in tokens]


def _library_tokenizer(path: Path, raw: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))
    except Exception as error:  # the library raises plain Exception
        raise ModelRefused(f"{path}: tokenizer.json can't be loaded: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _is_byte_level(path: Path, raw: dict[str, Any]) -> bool:
    """True for byte-level BPE, False for SentencePiece with bytes; else raises ModelRefused."""
    decoder = raw.get("decoder") or {}
    kinds = [d.get("type") for d in decoder.get("decoders", [decoder])]
    model = (raw.get("model") or {}).get("type")
    if model != "BPE" or not {"ByteLevel", "ByteFallback"} & set(kinds):
        raise ModelRefused(
            f"{path}: tokenizer.json is a {model} tokenizer with decoder {kinds}; accepted are "
            "byte-level BPE and SentencePiece BPE with byte fallback"
        )
    return "ByteLevel" in kinds


def _without_first_space(raw: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer for a text in the middle: some put a space before the first word."""
    normalizer, split = raw.get("normalizer") or {}, raw.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer])
    kept = [step for step in steps if step.get("type") != "Prepend"]
    found = dict(raw)
    if len(kept) < len(steps):
        found["normalizer"] = {"type": "Sequence", "normalizers": kept}
    if split:
        found["pre_tokenizer"] = _spaceless(split)
    return found


def _spaceless(split: dict[str, Any]) -> dict[str, Any]:
    match split.get("type"):
        case "Sequence":
            return split | {"pretokenizers": list(map(_spaceless, split["pretokenizers"]))}
        case "Metaspace":
            return split | {"prepend_scheme": "never"}
        case "ByteLevel":
            return split | {"add_prefix_space": False}
    return split


def _token_bytes(
    tokenizer: tokenizers.Tokenizer, added: list[dict[str, Any]], byte_level: bool
) -> list[bytes]:
    byte_of = _bytes_of_characters()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    found = [b""] * (max(vocabulary.values(), default=-1) + 1)
    special = {entry["id"]: entry.get("special") for entry in added}
    for token, index in vocabulary.items():
        if index not in special and byte_level:
            found[index] = b"".join(byte_of.get(c) or c.encode() for c in token)
        elif index not in special:
            byte = _BYTE.fullmatch(token)
            found[index] = bytes.fromhex(byte[1]) if byte else token.replace(_SPACE, " ").encode()
        elif not special[index]:
            found[index] = token.encode()
    return found


def _bytes_of_characters() -> dict[str, bytes]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    return {c: bytes((b,)) for c, b in zip(characters, printable + others, strict=True)}
