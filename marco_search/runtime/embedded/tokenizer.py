"""The model's byte-level BPE tokenizer, and the exact bytes behind every token.

Text is encoded by the `tokenizers` library from the folder's tokenizer.json. Decoding is done
here, from bytes: a character may be split over tokens, and only bytes tell which token
completes it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from marco_search.errors import ModelRefused
from marco_search.runtime.chat import token_text
from marco_search.runtime.embedded.checkpoint import read_json

TokenIds = npt.NDArray[np.int32]
_ENCODED_KEPT = 512  # the branches of a fork all ask for the same prefix


class Tokenizer:
    """Encodes text, and gives each token's bytes. Thread-safe."""

    def __init__(self, folder: Path, vocab: int) -> None:
        """Raises ModelRefused if the folder's tokenizer does not fit a model of `vocab` tokens."""
        path = folder / "tokenizer.json"
        raw = read_json(path)
        _check_byte_level(path, raw)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ModelRefused(f"{path} can't be loaded: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = raw.get("added_tokens") or []
        self.token_bytes = _token_bytes(self._tokenizer, added)
        if len(self.token_bytes) > vocab:
            raise ModelRefused(
                f"{folder}: the tokenizer has {len(self.token_bytes)} tokens, the model only "
                f"{vocab}: tokenizer and weights belong to different models"
            )
        self._texts = [b.decode("utf-8", "replace") for b in self.token_bytes]
        for entry in added:
            self._texts[entry["id"]] = entry["content"]
        #: Encodes a text; markers such as <|im_start|> become their tokens.
        self.encode = lru_cache(_ENCODED_KEPT)(self._encode)
        config = read_json(folder / "tokenizer_config.json", required=False)
        end = token_text(config.get("eos_token"))
        #: The token that ends a turn of a chat model: some say so nowhere else.
        self.end_of_turn = None if end is None else self.id_of(end)

    def _encode(self, text: str) -> TokenIds:
        ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
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


def _check_byte_level(path: Path, raw: dict[str, Any]) -> None:
    decoder = raw.get("decoder") or {}
    kinds = [d.get("type") for d in decoder.get("decoders", [decoder])]
    model = (raw.get("model") or {}).get("type")
    if model != "BPE" or "ByteLevel" not in kinds:
        raise ModelRefused(
            f"{path} is a {model} tokenizer with decoder {kinds}; accepted is byte-level BPE, "
            "which Qwen2 models use"
        )


def _token_bytes(tokenizer: tokenizers.Tokenizer, added: list[dict[str, Any]]) -> list[bytes]:
    byte_of = _bytes_of_characters()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    found = [b""] * (max(vocabulary.values(), default=-1) + 1)
    special = {entry["id"]: entry.get("special") for entry in added}
    for token, index in vocabulary.items():
        if index not in special:
            found[index] = b"".join(byte_of.get(c) or c.encode() for c in token)
        elif not special[index]:
            found[index] = token.encode()
    return found


def _bytes_of_characters() -> dict[str, bytes]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    return {c: bytes((b,)) for c, b in zip(characters, printable + others, strict=True)}
