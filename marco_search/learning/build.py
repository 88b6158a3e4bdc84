"""Makes a data set of stored trees: its folder, and in the database where each line came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

from marco_search.errors import RightsMissing
from marco_search.export.tables import Filter
from marco_search.learning import manifest, samples, traces
from marco_search.learning.filters import Rule, first_reason, parameters
from marco_search.learning.manifest import Kind, Source
from marco_search.learning.pairs import pairs_of
from marco_search.learning.samples import Pair, Sample, Writer
from marco_search.store.db import Database, reads_tables

_HEAD = "SELECT seq, head FROM audit.chain ORDER BY seq DESC LIMIT 1"
_MAY = "SELECT has_table_privilege('public.datasets', 'INSERT')"


def from_traces(
    database: Database,
    folder: Path,
    chosen: Filter,
    wanted: traces.Rules,
    *,
    rules: Mapping[str, Rule],
    kind: Kind = "sft",
    name: str | None = None,
) -> dict[str, Any]:
    """Make a data set of these jobs at `folder` and keep where it came from; its manifest.

    `wanted` is what jobs and paths must be, `rules` what lines must be, among it that no two are
    equal (`duplicates.rules`). Raises InputError if there is something at `folder`, TrailBroken if
    jobs do not verify, RightsMissing.
    """
    with database.transaction() as conn:
        if not reads_tables(conn) or conn.execute(_MAY).fetchone() != (True,):
            raise RightsMissing(
                "this login may not keep data sets: set DATABASE_URL to one of the app's or owner's"
            )
    all_rules = traces.job_rules(wanted) | dict(rules)
    models: Counter[tuple[str, str]] = Counter()
    # The folder appears before what is registered is committed: if it can't, nothing is.
    with ExitStack() as registered, manifest.whole_folder(folder) as part:
        with database.snapshot() as conn, Writer(part, kind) as writer:
            reader = traces.Reader(conn, wanted)
            head = conn.execute(_HEAD).fetchone() or (None, None)
            rows: Iterable[Sample | Pair] = reader.samples(chosen)
            if kind == "preference":
                rows = pairs_of(reader, chosen)
            for row in rows:
                if (found := first_reason(rules, row)) is None:
                    writer.write(row)
                    models[row.provenance["model"], row.provenance["revision"]] += 1
                else:
                    reader.dropped.add(*found, id=row.id, job=row.provenance["job"])
        made = manifest.write(
            part,
            name=name or folder.name,
            kind=kind,
            command="marco dataset from-traces",
            rules=parameters(all_rules) | traces.path_rules(wanted),
            counts={"in": reader.jobs, "trees": reader.used, "out": writer.count},
            dropped=reader.dropped,
            inputs=[
                _selection(chosen)
                | {"jobs": reader.used, "roots_sha256": reader.roots}
                | dict(zip(("chain_seq", "chain_head"), head, strict=True))
            ],
            models=[{"model": m, "revision": r, "rows": n} for (m, r), n in models.items()],
            seed=wanted.seed,
        )
        conn = registered.enter_context(database.transaction())
        manifest.register(conn, made, chosen.tenant, _sources(part, kind))
    return made


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
