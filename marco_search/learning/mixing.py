"""Data sets mixed into one: weights, a part kept apart for validation, an order by a seed.

All is decided by hashes of the seed and of what a row says, so the same inputs give the same files.
Rows whose prompts say the same are on the same side of the split. Memory is constant: the order is
sorted in a temporary SQLite file, and the rows are read again where they are.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marco_search.errors import InputError
from marco_search.files import whole_folder
from marco_search.learning import manifest, samples
from marco_search.learning.conversations import source_of
from marco_search.learning.duplicates import prompt_key, scratch_database
from marco_search.learning.filters import Rule, first_reason, parameters
from marco_search.learning.samples import Pair, Sample

VALIDATION = "validation"


def mix(
    inputs: Mapping[Path, float],
    folder: Path,
    rules: Mapping[str, Rule],
    *,
    validation: float = 0.0,
    seed: int = 0,
    all_tenants: bool = False,
) -> dict[str, Any]:
    """Make a data set of others at `folder`; its manifest.

    `inputs`: folder to weight; 0.5 takes half of its rows, 2 each row twice. `validation` is the
    share of prompts whose rows go to validation.jsonl, each of them once.

    Raises InputError for rows of several tenants, unless they are asked for.
    """
    kinds = {manifest.read(path)["kind"] for path in inputs}
    if len(kinds) != 1:
        raise InputError("samples and preference pairs can't be mixed; mix each kind separately")
    (kind,) = kinds
    with whole_folder(folder) as part, scratch_database(_ORDER) as order:
        chosen = _Chosen(order, rules, validation, seed, samples.Tenants(all_tenants))
        about = [chosen.add(path, kind, weight) for path, weight in inputs.items()]
        splits = ["", VALIDATION] if validation else [""]
        counts = {name or "train": _write(part, order, list(inputs), kind, name) for name in splits}
        return manifest.write(
            part,
            name=folder.name,
            kind=kind,
            command="marco dataset mix",
            rules=parameters(rules) | {"split": {"validation": validation, "by": "prompt"}},
            counts={"in": sum(one["in"] for one in about), "out": sum(counts.values()), **counts},
            dropped=chosen.dropped,
            inputs=about,
            seed=seed,
        )


@dataclass
class _Chosen:
    """Which rows of the inputs are taken, and where they go."""

    order: sqlite3.Connection
    rules: Mapping[str, Rule]
    validation: float
    seed: int
    tenants: samples.Tenants
    dropped: manifest.Dropped = field(default_factory=manifest.Dropped)
    inputs: int = 0

    def add(self, path: Path, kind: str, weight: float) -> dict[str, Any]:
        """Take rows of an input; what the manifest says of it."""
        about = {**source_of(path), "weight": weight, "in": 0, "out": 0}
        for place, row in samples.places(path, samples.KINDS[kind]):
            about["in"] += 1
            self.tenants.add(row.tenant)
            # First, so that what is not taken here does not count as there already.
            copies = int(weight + _share(self.seed, "weight", row.id))
            if not copies:
                self.dropped.add("weight", f"of its set {weight:g} is taken", id=row.id)
            elif found := first_reason(self.rules, row):
                self.dropped.add(*found, id=row.id, input=str(path))
            else:
                about["out"] += self._take(row, copies, place)
        self.inputs += 1
        return about

    def _take(self, row: Sample | Pair, copies: int, place: int) -> int:
        apart = _share(self.seed, "split", prompt_key(row.prompt)) < self.validation
        copies = 1 if apart else copies
        self.order.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, ?)",
            [(apart, _key(self.seed, n, row.id), self.inputs, place) for n in range(copies)],
        )
        return copies


def _write(part: Path, order: sqlite3.Connection, inputs: list[Path], kind: str, split: str) -> int:
    """Write a split's rows in their order; how many."""
    row_kind = samples.KINDS[kind]
    with ExitStack() as files, samples.Writer(part, kind, split=split) as writer:
        opened = [
            files.enter_context(samples.file_of(path, row_kind).open("rb")) for path in inputs
        ]
        for number, place in order.execute(_IN_ORDER, (split == VALIDATION,)):
            opened[number].seek(place)
            writer.write(row_kind.from_json(json.loads(opened[number].readline())))
        return writer.count


_ORDER = """
PRAGMA temp_store=FILE;
CREATE TABLE rows (apart INT, key BLOB, input INT, place INT);
"""
_IN_ORDER = "SELECT input, place FROM rows WHERE apart = ? ORDER BY key"


def _key(*parts: object) -> bytes:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).digest()[:8]


def _share(*parts: object) -> float:
    """A number in [0, 1) that is the hash of these."""
    return int.from_bytes(_key(*parts), "big") / 2**64
