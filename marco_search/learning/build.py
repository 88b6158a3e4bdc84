"""Makes a data set of stored trees: its folder, and in the database where each line came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

from marco_search.export.tables import Filter
from marco_search.learning import manifest, samples, traces
from marco_search.learning.manifest import Kind, Source
from marco_search.learning.pairs import pairs_of
from marco_search.learning.samples import Pair, Sample, Writer
from marco_search.store.db import Database

Check = Callable[[Sample | Pair], str | None]
"""Why a line is left out; None: it is not."""


def from_traces(
    database: Database,
    folder: Path,
    chosen: Filter,
    rules: traces.Rules,
    *,
    kind: Kind = "sft",
    name: str | None = None,
    checks: Mapping[str, Check] | None = None,
) -> dict[str, Any]:
    """Make a data set of these jobs at `folder` and keep where it came from; its manifest.

    `checks` are by the name of their rule. Raises InputError if there is something at `folder`,
    TrailBroken if jobs do not verify.
    """
    checks = {"duplicate": _equal()} | dict(checks or {})
    models: Counter[tuple[str, str]] = Counter()
    with manifest.whole_folder(folder) as part:
        with database.snapshot() as conn, Writer(part, kind) as writer:
            reader = traces.Reader(conn, rules)
            rows: Iterable[Sample | Pair] = reader.samples(chosen)
            if kind == "preference":
                rows = pairs_of(reader, chosen)
            for row in rows:
                found = ((rule, check(row)) for rule, check in checks.items())
                rule, reason = next((one for one in found if one[1]), ("", None))
                if reason is None:
                    writer.write(row)
                    models[row.provenance["model"], row.provenance["revision"]] += 1
                else:
                    about = {"id": row.id, "job": row.provenance["job"]}
                    reader.dropped.add(rule, reason, **about)
        made = manifest.write(
            part,
            name=name or folder.name,
            kind=kind,
            command="marco dataset from-traces",
            rules=traces.parameters(rules) | {rule: {} for rule in checks},
            counts={"in": reader.jobs, "trees": reader.used, "out": writer.count},
            dropped=reader.dropped,
            inputs=[_selection(chosen) | {"jobs": reader.used, "roots_sha256": reader.roots}],
            models=[{"model": m, "revision": r, "rows": n} for (m, r), n in models.items()],
            seed=rules.seed,
        )
        with database.transaction() as conn:
            manifest.register(conn, made, chosen.tenant, _sources(part, kind))
    return made


def _equal() -> Check:
    seen: set[str] = set()

    def check(row: Sample | Pair) -> str | None:
        if row.id in seen:
            return "the same text as another"
        seen.add(row.id)
        return None

    return check


def _selection(chosen: Filter) -> dict[str, Any]:
    """What was asked for, and the tenant in any case: null is all."""
    asked = {k: v for k, v in asdict(chosen).items() if v}
    plain = {k: list(map(str, v)) if k == "jobs" else str(v) for k, v in asked.items()}
    return {"tenant": chosen.tenant} | {("ids" if k == "jobs" else k): v for k, v in plain.items()}


def _sources(folder: Path, kind: Kind) -> Iterator[Source]:
    """Where each line of a folder that was just written came from."""
    if kind == "sft":
        for sample in samples.read(folder):
            about = sample.provenance
            job = UUID(about["job"])
            yield Source(sample.id, "sample", job, about["rollout"], about["nodes"])
        return
    for pair in samples.read_pairs(folder):
        job = UUID(pair.provenance["job"])
        for role in ("chosen", "rejected"):
            side = pair.provenance[role]
            yield Source(pair.id, role, job, side["rollout"], side["nodes"])
