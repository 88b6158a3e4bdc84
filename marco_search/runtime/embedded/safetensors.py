"""Reads and writes the safetensors format (huggingface.co/docs/safetensors): plain bytes, no code.

A file is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte
range), then the tensors' bytes. F32, F16 and BF16 are read, everything as float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marco_search.errors import ModelRefused

Floats = npt.NDArray[np.float32]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_BYTES_OF = {"F32": 4, "F16": 2, "BF16": 2}
_HEADER_LIMIT_BYTES = 100_000_000


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files in name order: the whole one, or the shards of an index.

    An index beside a whole file is what a model was converted from, or a left-over: as with
    transformers, the file counts.
    Raises ModelRefused when there are none or a shard is missing.
    """
    index = folder / INDEX
    if not (folder / SINGLE).is_file() and index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelRefused(f"{index} is not a safetensors index: {error!r}") from None
        files = [folder / Path(name).name for name in sorted(names)]
    else:
        files = [folder / SINGLE]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise ModelRefused(
            f"no {', '.join(missing)} in {folder}: weights are read from {SINGLE}, or from the "
            f"shards named in {INDEX}"
        )
    return files


def read_folder(folder: Path) -> dict[str, Floats]:
    """All tensors of a model folder as float32, by name. Raises ModelRefused."""
    tensors: dict[str, Floats] = {}
    for file in weight_files(folder):
        tensors.update(read_file(file))
    return tensors


def read_file(path: Path) -> dict[str, Floats]:
    """The tensors of one file as float32, by name. Raises ModelRefused for a damaged file."""
    data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size >= 8 else np.empty(0, "u1")
    size = int(data[:8].view("<u8")[0]) if data.size else 0
    if not 2 <= size <= min(data.size - 8, _HEADER_LIMIT_BYTES):
        raise ModelRefused(f"{path} is not a safetensors file (is it a Git LFS pointer?)")
    try:
        header = json.loads(data[8 : 8 + size].tobytes())
        return {
            name: _tensor(name, entry, data[8 + size :])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelRefused(f"{path} is a damaged safetensors file: {error}") from None


def _tensor(name: str, entry: dict[str, Any], body: npt.NDArray[np.uint8]) -> Floats:
    dtype, shape = entry["dtype"], [int(n) for n in entry["shape"]]
    start, end = (int(n) for n in entry["data_offsets"])
    if dtype not in _BYTES_OF:
        raise ModelRefused(
            f"tensor {name} has type {dtype}; accepted are {', '.join(_BYTES_OF)} "
            "(quantised weights are not supported)"
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


def write_file(path: Path, tensors: Mapping[str, npt.NDArray[Any]], *, dtype: str = "F32") -> None:
    """Write `tensors` to `path`, stored as `dtype` (F32, F16, or BF16 rounded to even)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    offset = 0
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name], np.float32)
        if dtype == "BF16":
            bits = values.view(np.uint32)
            raw = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        else:
            raw = values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        end = offset + len(raw)
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [offset, end]}
        parts.append(raw)
        offset = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(parts))


def fingerprint(folder: Path) -> str:
    """sha256, in hex, over the weight files' bytes in name order."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
