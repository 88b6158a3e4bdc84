"""The manifest of a data set: what it was made from, by which rules, with the hashes of its files.

A data set is a folder that appears whole or not at all. Its manifest is in it and, with where each
sample came from, in the database.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from marco_search import __version__
from marco_search.errors import InvalidDataSet
from marco_search.files import digest
from marco_search.learning.samples import canonical
from marco_search.store.db import Conn, insert

FORMAT = 1
FILE, DROPPED_FILE = "manifest.json", "dropped.json"
Kind = Literal["sft", "preference"]
Role = Literal["sample", "chosen", "rejected"]

_EXAMPLES = 5
_ROWS_AT_ONCE = 1000


@dataclass(slots=True)
class Dropped:
    """What was left out: how much by each rule, and the first few of it with the reason."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, rule: str, reason: str, **about: Any) -> None:
        """Count one; `about` says which it was."""
        self.counts[rule] += 1
        if len(self.examples[rule]) < _EXAMPLES:
            self.examples[rule].append({"reason": reason, **about})

    def write(self, folder: Path) -> None:
        """Write dropped.json."""
        found = {
            rule: {"count": n, "examples": self.examples[rule]}
            for rule, n in self.counts.most_common()
        }
        text = json.dumps(found, ensure_ascii=False, indent=2)
        (folder / DROPPED_FILE).write_text(text, encoding="utf-8")


def write(
    folder: Path,
    *,
    name: str,
    kind: Kind,
    command: str,
    rules: Mapping[str, Mapping[str, Any]],
    counts: Mapping[str, int],
    dropped: Dropped,
    inputs: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]] = (),
    seed: int | None = None,
) -> dict[str, Any]:
    """Write dropped.json and, over all files that are there, manifest.json; the manifest.

    `rules` is by name, each with its parameters; `counts` has at least "in" and "out"; each of
    `inputs` says what was read, with its hash or its manifest's; `models` have "model" and
    "revision".
    """
    dropped.write(folder)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "command": command,
        "rules": rules,
        "counts": {**counts, "dropped": dict(dropped.counts)},
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": digest(path)}
            for path in sorted(folder.iterdir())
        },
        "inputs": inputs,
        "models": models,
        "seed": seed,
    }
    # As it will be read again: tuples are lists.
    manifest = json.loads(json.dumps(manifest, ensure_ascii=False, allow_nan=False))
    manifest["manifest_sha256"] = sha256(manifest)
    text = json.dumps(manifest, ensure_ascii=False, indent=2)
    (folder / FILE).write_text(text, encoding="utf-8")
    return manifest


def sha256(manifest: Mapping[str, Any]) -> str:
    """SHA-256, hex, of a manifest's canonical JSON without its own hash."""
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(canonical(rest)).hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a data set. Raises InvalidDataSet if there is none that can be read."""
    try:
        manifest = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InvalidDataSet(f"{folder}: not a data set: it has no readable {FILE}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InvalidDataSet(f"{folder}: its {FILE} is of another format than {FORMAT}")
    if lacking := {"kind", "files", "inputs", "manifest_sha256"} - manifest.keys():
        raise InvalidDataSet(f"{folder}: its {FILE} has no {', '.join(sorted(lacking))}")
    return manifest


def lineage(manifest: Mapping[str, Any]) -> list[str]:
    """The hash of a manifest, and of those of the data sets that it was made of, and of theirs."""
    below = [lineage(one) for one in manifest.get("inputs", ()) if "manifest_sha256" in one]
    return list(dict.fromkeys([manifest["manifest_sha256"], *chain.from_iterable(below)]))


def broken(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What does not fit a manifest any more: its own hash, and files that changed or are gone."""
    found = [] if sha256(manifest) == manifest.get("manifest_sha256") else [FILE]
    for name, about in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file() or digest(path) != about["sha256"]:
            found.append(name)
    return found


class Source(NamedTuple):
    """Which path of a stored tree a sample, or one side of a pair, is."""

    sample_id: str
    role: Role
    job_id: UUID
    rollout_id: int
    node_ids: list[int]


def register(
    conn: Conn, manifest: Mapping[str, Any], tenant: str | None, sources: Iterable[Source]
) -> UUID:
    """Keep a data set in the database, without its texts; its id. None: of all tenants' jobs."""
    dataset = {"id": uuid4(), "tenant": tenant, "manifest": Jsonb(manifest)}
    dataset |= {name: manifest[name] for name in ("name", "kind", "manifest_sha256")}
    insert(conn, "datasets", [dataset | {"samples": manifest["counts"]["out"]}])
    rows = ({"dataset_id": dataset["id"], **source._asdict()} for source in sources)
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        insert(conn, "dataset_samples", part)
    return UUID(str(dataset["id"]))
