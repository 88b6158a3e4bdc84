"""From a line of a data set back to the tree it came from, and whether all of it still holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg.rows import dict_row

from marco_search.errors import InvalidDataSet
from marco_search.export.tables import Filter
from marco_search.learning import manifest
from marco_search.learning.build import pair
from marco_search.learning.traces import Reader, Rules, Tree, sample, stored_jobs
from marco_search.store.db import Conn, reads_tables
from marco_search.store.reads.lineage import DataSet, data_sets
from marco_search.store.seal.verification import check_jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a line of one data set came from."""

    dataset: DataSet
    sample_id: str
    job: UUID
    tenant: str
    paths: Sequence[Mapping[str, Any]]  #: role, rollout, answer, nodes, text (None: archived)
    manifest_holds: bool  #: whether the stored manifest has the hash that it had
    status: str | None  #: of the job's verification; None: this login can't verify
    unchanged: bool | None  #: whether the tree still makes the same line; None: it can't be told

    @property
    def holds(self) -> bool:
        """Whether nothing is known to have changed."""
        return self.manifest_holds and self.status != "broken" and self.unchanged is not False


_SAMPLES = """
    SELECT s.dataset_id, s.sample_id, s.job_id, s.tenant, jsonb_agg(jsonb_build_object(
        'role', s.role, 'rollout', s.rollout_id, 'answer', s.answer, 'text', s.text,
        'nodes', ARRAY(
            SELECT jsonb_build_object('node_id', n.node_id, 'action', n.action, 'text', n.text)
            FROM audit.nodes AS n WHERE n.job_id = s.job_id AND n.node_id = ANY (s.node_ids)
            ORDER BY n.depth
        )) ORDER BY s.role) AS paths
    FROM audit.dataset_samples AS s JOIN audit.datasets AS d USING (dataset_id)
    WHERE s.sample_id BETWEEN %(sample)s AND %(sample)s || 'g'
        AND (%(tenant)s::text IS NULL OR s.tenant = %(tenant)s)
    GROUP BY s.dataset_id, s.sample_id, s.job_id, s.tenant, d.created_at
    ORDER BY d.created_at DESC, s.sample_id
"""


def trace(conn: Conn, sample_id: str, tenant: str | None) -> list[Origin]:
    """Where a line came from, in each data set that has it, the newest first.

    `sample_id` may be its beginning; None is all tenants. Raises InvalidDataSet if there is none,
    or if the beginning matches several.
    """
    with conn.cursor(row_factory=dict_row) as cursor:
        given = {"sample": sample_id.lower(), "tenant": tenant}
        rows = cursor.execute(_SAMPLES.encode(), given).fetchall()
    found = {row["sample_id"] for row in rows}
    if not found:
        raise InvalidDataSet(
            f"no data set of these jobs has a sample {sample_id}, or its job was redacted since"
        )
    if len(found) > 1:
        raise InvalidDataSet(f"{sample_id} matches {len(found)} samples: give more of the id")
    return [_origin(conn, **row) for row in rows]


def changed_files(folder: Path, found: Sequence[Origin]) -> list[str]:
    """Files of a folder that are not as its manifest says, or the manifest if it was not kept.

    The kept ones are those of the data sets found; a mix of them has them among its inputs.
    """
    made = manifest.read(folder)
    kept = {origin.dataset.manifest_sha256 for origin in found}
    broken = manifest.broken(folder, made)
    return broken or ([] if kept & set(manifest.lineage(made)) else [manifest.FILE])


def _origin(
    conn: Conn, dataset_id: UUID, sample_id: str, job_id: UUID, tenant: str,
    paths: Sequence[Mapping[str, Any]],
) -> Origin:  # fmt: skip
    (dataset,) = data_sets(conn, dataset_id=dataset_id)
    holds, status = manifest.sha256(dataset.manifest) == dataset.manifest_sha256, None
    if reads_tables(conn):
        status = str(next(check_jobs(conn, [job_id])).status)
    return Origin(
        dataset=dataset,
        sample_id=sample_id,
        job=job_id,
        tenant=tenant,
        paths=paths,
        manifest_holds=holds,
        status=status,
        # What was changed may be unreadable too.
        unchanged=_unchanged(conn, dataset, sample_id, job_id, paths)
        if holds and status != "broken"
        else None,
    )


def _unchanged(
    conn: Conn, dataset: DataSet, sample_id: str, job_id: UUID, paths: Sequence[Mapping[str, Any]]
) -> bool | None:
    """Whether the line, made again from the tree, has the same id, and its paths these nodes."""
    (stored,) = stored_jobs(conn, Filter(jobs=[job_id]))
    if stored.redacted_at or stored.share is None:
        return None
    mode = dataset.manifest["rules"]["reflection"]["reflection"]
    made = [_line_id(tree, paths) for tree in Reader(conn, Rules(reflection=mode)).read([stored])]
    return made == [sample_id] if made else None


def _line_id(tree: Tree, paths: Sequence[Mapping[str, Any]]) -> str | None:
    """The id of the line that these paths make; None if the tree does not have them."""
    rollouts = {rollout.rollout_id: rollout for rollout in tree.rollouts}
    side = {}
    for path in paths:
        rollout = rollouts.get(path["rollout"])
        if rollout is None or [n["node_id"] for n in path["nodes"]] != list(rollout.path[1:]):
            return None
        side[path["role"]] = rollout
    if side.keys() == {"sample"}:
        return sample(tree, side["sample"]).id
    if side.keys() == {"chosen", "rejected"}:
        return pair(tree, side["chosen"], side["rejected"]).id
    return None


def lines(found: Origin) -> Iterator[str]:
    """The origin for a reader."""
    about, mark = found.dataset, {True: "holds", False: "DOES NOT HOLD", None: "can't be told"}
    yield f"sample {found.sample_id} of {about.name} ({about.kind}, {about.samples:,} lines)"
    yield f"  manifest {about.manifest_sha256}: {mark[found.manifest_holds]}"
    yield f"  job      {found.job} of {found.tenant}: {found.status or 'not verified: views only'}"
    yield f"  line     made again from its tree: {mark[found.unchanged]}"
    for path in found.paths:
        yield "  {role}: rollout {rollout}, answer {answer}".format(**path)
        for node in path["nodes"]:
            yield f"    {node['node_id']:>5} {node['action']:<10} {node['text']!r}"
