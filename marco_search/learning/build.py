"""Makes a data set from stored trees: its folder, and in the database the origin of each line.

A preference pair is a path to the answer and a path to an answer that lost, in one tree. The
cleanest pair is a fork: both sides are the same text up to a token that the model was unsure of,
and one token decided. Such pairs come first, then those that share most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any
from uuid import UUID

from marco_search.errors import RightsMissing
from marco_search.export.tables import Filter
from marco_search.files import whole_folder
from marco_search.learning import manifest, samples, traces
from marco_search.learning.filters import Rule, first_reason, parameters
from marco_search.learning.manifest import Kind, Role, Source
from marco_search.learning.samples import Pair, Sample, Writer
from marco_search.learning.traces import Reader, Tree
from marco_search.search.tree import Rollout
from marco_search.store.db import Conn, Database, reads_tables, select

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
    """Make a data set from these jobs at `folder` and register its origins; its manifest.

    `wanted` are the rules for jobs and paths, `rules` those for lines, including duplicates
    (`duplicates.rules`). Raises InputError if `folder` exists, TrailBroken if jobs do not verify,
    RightsMissing.
    """
    with database.transaction() as conn:
        if not reads_tables(conn) or conn.execute(_MAY).fetchone() != (True,):
            raise RightsMissing(
                "this login may not keep data sets: set DATABASE_URL to one of the app's or owner's"
            )
    all_rules = traces.job_rules(wanted) | dict(rules)
    models: Counter[tuple[str, str]] = Counter()
    # The folder appears before what is registered is committed: if it can't, nothing is.
    with ExitStack() as registered, whole_folder(folder) as part:
        with database.snapshot() as conn, Writer(part, kind) as writer:
            reader = Reader(conn, wanted)
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
    """The filter as given, always with the tenant; null: all."""
    asked = {k: v for k, v in asdict(chosen).items() if v}
    plain = {k: list(map(str, v)) if k == "jobs" else str(v) for k, v in asked.items()}
    return {"tenant": chosen.tenant} | {("ids" if k == "jobs" else k): v for k, v in plain.items()}


def _sources(folder: Path, kind: Kind) -> Iterator[Source]:
    """The origin of each line of a folder that was just written."""
    roles: tuple[Role, ...] = ("sample",) if kind == "sft" else ("chosen", "rejected")
    for _, row in samples.places(folder, samples.KINDS[kind]):
        about = row.provenance
        for role in roles:
            side = about.get(role, about)
            yield Source(row.id, role, UUID(about["job"]), side["rollout"], side["nodes"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A rollout that begins with a token that another had passed over."""

    rollout_id: int
    start_id: int  #: the node that both sides continue from
    position: int  #: tokens generated before
    taken: str | None
    passed_over: str | None


def pairs_of(reader: Reader, chosen: Filter) -> Iterator[Pair]:
    """The best pairs of each job that pass the rules, each with a different loser, by job id."""
    for tree in reader.trees(chosen):
        won, lost = tree.learnable(reader), _lost(tree)
        if won and not lost:
            reader.drop(tree.stored, "unanimous", "no path leads to another answer")
        elif won:
            best = [max(((w, x) for w in won), key=lambda sides: _rank(tree, *sides)) for x in lost]
            best.sort(key=lambda sides: _rank(tree, *sides), reverse=True)
            for sides in best[: reader.rules.pairs_per_job]:
                yield pair(tree, *sides, fork=_fork(reader.conn, tree, *sides))


def pair(tree: Tree, won: Rollout, lost: Rollout, fork: Fork | None = None) -> Pair:
    """The pair that two paths make."""
    texts = tree.text(won), tree.text(lost)
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts)
    return Pair(
        prompt=tree.prompt,
        chosen=chosen,
        rejected=rejected,
        shared_prefix=_shared(*texts),
        language=tree.language,
        tenant=tree.stored.tenant,
        provenance=tree.provenance(won)
        | {
            "chosen": tree.about(won),
            "rejected": tree.about(lost),
            "fork": fork and asdict(fork),
            "rejected_answer": lost.answer,
        },
    )


def _lost(tree: Tree) -> list[Rollout]:
    """The rollouts with an answer that is neither the job's nor known to be right."""
    won = {w.rollout_id for w in tree.winners}
    others = (r for r in tree.rollouts if r.answer is not None and r.rollout_id not in won)
    return [r for r in others if not tree.verified(r)]


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The common beginning."""
    return sum(takewhile(bool, map(eq, one, other)))


def _rank(tree: Tree, won: Rollout, lost: Rollout) -> tuple[Any, ...]:
    """Sort key, highest first: a fork, most shared nodes, the best winner, the first loser."""
    forked = _forked(won, lost) is not None
    return forked, _shared(won.path, lost.path), -tree.winners.index(won), -lost.rollout_id


def _forked(won: Rollout, lost: Rollout) -> Rollout | None:
    """The one that was forced to begin with another token where the two diverge."""
    last = won.path[_shared(won.path, lost.path) - 1]
    return next((r for r in (won, lost) if r.forced is not None and r.start_id == last), None)


def _fork(conn: Conn, tree: Tree, won: Rollout, lost: Rollout) -> Fork | None:
    forked = _forked(won, lost)
    if forked is None:
        return None
    where = "audit.forks WHERE job_id = %s AND rollout_id = %s"
    (fork,) = select(conn, Fork, where, [tree.stored.job_id, forked.rollout_id])
    return fork
