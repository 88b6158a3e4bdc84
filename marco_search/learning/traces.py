"""Samples from stored trees: of each job the best path to its answer, if it passes the rules.

Jobs are read a few at a time from one snapshot of the database, and each is verified first, so
that a model only learns what the trail proves.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from random import Random
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import class_row

from marco_search import profiles
from marco_search.engine import profile_of
from marco_search.errors import InvalidJob, InvalidProfile, SearchError, TrailBroken
from marco_search.export.tables import Filter
from marco_search.jobs import Answer, Job, JobState
from marco_search.kinds import kind_of, parse_job
from marco_search.kinds.base import without_end
from marco_search.learning.filters import Rule, first_reason
from marco_search.learning.manifest import Dropped
from marco_search.learning.samples import Message, Sample
from marco_search.search.actions import Action
from marco_search.search.config import SearchConfig
from marco_search.search.rewards import CONFIDENCE, VERIFIER
from marco_search.search.tree import ROOT, Rollout
from marco_search.store import views
from marco_search.store.db import Conn, select
from marco_search.store.reads import queries
from marco_search.store.seal.verification import check_jobs
from marco_search.store.trail import trail

_JOBS_AT_ONCE, _NODES_AT_ONCE = 100, 10_000
"""Verified together: some 50 MB."""
_SHOWN = 5
ACCEPTED = 0.5
"""Minimum score of a verifier for an answer to count as right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Rules for jobs and paths."""

    least_share: float = 0.5  #: of its answer in the vote, 0 to 1
    least_confidence: float = 0.0  #: of its answer, 0 to 1
    verified: bool = False  #: its answer must be known to be right
    reflection: Literal["mended", "kept", "redo"] = "mended"
    """Of which paths with a reflection: mended, where the thought before it leads to other answers
    only; kept, any; redo, any, of which what was written after it only."""
    answer: Literal["voted", "expected"] = "voted"  #: whose paths; expected: where there is a label
    path: Literal["best", "any"] = "best"  #: of those to its answer; any: one at random
    seed: int = 0  #: of the choice at random
    pairs_per_job: int = 1  #: at most


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """A job from the view audit.jobs, with its root in the chain, hex."""

    job_id: UUID
    tenant: str
    state: str
    payload: dict[str, Any]
    config: dict[str, Any] | None
    answer: str | None
    confidence: float | None
    share: float | None
    expected: str | None
    correct: bool | None
    nodes: int
    model: str | None
    revision: str | None
    redacted_at: Any
    root: str | None


def job_rules(rules: Rules) -> dict[str, Rule]:
    """Rules applied before a job's tree is read; the first that fails counts."""

    def voted(rule: Callable[[StoredJob], str | None]) -> Callable[[StoredJob], str | None]:
        """A rule that only applies to the voted answer."""
        return lambda j: rule(j) if rules.answer == "voted" or j.expected is None else None

    return {
        "unfinished": Rule(lambda j: None if j.state == JobState.SUCCEEDED else f"it is {j.state}"),
        "redacted": Rule(lambda j: "its texts were replaced" if j.redacted_at else None),
        "unanswered": Rule(lambda j: "no rollout has an answer" if j.answer is None else None),
        "wrong": Rule(
            voted(lambda j: f"the answer is not {j.expected}" if j.correct is False else None)
        ),
        "archived": Rule(lambda j: "its tree is in an archive" if j.share is None else None),
        "undecided": Rule(
            voted(lambda j: _less("part of the vote", j.share or 0.0, rules.least_share)),
            {"least_share": rules.least_share},
        ),
        "unsure": Rule(
            voted(lambda j: _less("confidence", j.confidence or 0.0, rules.least_confidence)),
            {"least_confidence": rules.least_confidence},
        ),
    }


def path_rules(rules: Rules) -> dict[str, dict[str, Any]]:
    """The parameters of the rules that a tree's paths are chosen by (`Tree.learnable`)."""
    return {
        "profile": {},
        "reflection": {"reflection": rules.reflection},
        "unverified": {"verified": rules.verified, "accepted": ACCEPTED},
        "path": {"answer": rules.answer, "path": rules.path, "seed": rules.seed},
        "unanimous": {"pairs_per_job": rules.pairs_per_job},
    }


def _less(what: str, value: float, least: float) -> str | None:
    return f"the answer's {what} is {value:.3g}" if value < least else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeText:
    """The text of a node."""

    job_id: UUID
    node_id: int
    action: str
    text: str


_ROOT = NodeText(job_id=UUID(int=0), node_id=ROOT, action=Action.ROOT, text="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A job's tree, its prompt, and the rollouts that reach its answer, best first."""

    rules: Rules
    stored: StoredJob
    job: Job
    config: SearchConfig
    prompt: tuple[Message, ...]
    nodes: Mapping[int, NodeText]
    rollouts: tuple[Rollout, ...]
    winners: tuple[Rollout, ...] = ()

    def with_winners(self, voted: Answer) -> Tree:
        """The tree with the rollouts that reach the job's answer, or the expected one."""
        if self.rules.answer == "expected" and self.stored.expected is not None:
            found = [r for r in self.rollouts if r.answer is not None and self.verified(r)]
        else:
            found = [r for r in self.rollouts if r.rollout_id in voted.rollout_ids]
        confident = self.config.reward in CONFIDENCE

        def rank(rollout: Rollout) -> tuple[float, int]:
            """As the view audit.answers ranks the rollouts of an answer."""
            return -(rollout.path_confidence if confident else rollout.value), rollout.rollout_id

        return replace(self, winners=tuple(sorted(found, key=rank)))

    def text(self, rollout: Rollout) -> str:
        """The model's turn, without the special token that ended it."""
        turn, path = self.config.turn, rollout.path
        if self.rules.reflection == "redo":
            path = path[self._reflection(rollout) + 1 :]
        return without_end(turn.opening + "".join(self.nodes[i].text for i in path), turn)

    def _reflection(self, rollout: Rollout) -> int:
        """Index of the last reflection on its path; -1 if there is none."""
        places = (i for i, n in enumerate(rollout.path) if self._reflects(n))
        return max(places, default=-1)

    def _reflects(self, node_id: int) -> bool:
        return self.nodes[node_id].action == Action.REFLECTION

    def mended(self, rollout: Rollout) -> bool:
        """Whether the thought before its last reflection leads to other answers only."""
        at, path = self._reflection(rollout), rollout.path
        before = {
            r.rollout_id
            for r in self.rollouts
            if r.answer is not None
            and r.path[:at] == path[:at]
            and not any(map(self._reflects, r.path[at : at + 1]))  # it may end there
        }
        return bool(before) and before.isdisjoint(w.rollout_id for w in self.winners)

    def learnable(self, reader: Reader) -> list[Rollout]:
        """The paths to its answer that pass the rules, best first; if none, `reader` counts why."""
        rules = self.rules
        accepted = (True,) if rules.verified else (True, None)
        known = [w for w in self.winners if self.verified(w) in accepted]
        if not known:
            reader.drop(self.stored, "unverified", "no label or verifier says that it is right")
            return []
        strict = rules.reflection == "mended"
        good = [w for w in known if not strict or not self.reflected(w) or self.mended(w)]
        if not good:
            reason = "no path to the answer without a reflection, and none that one mended"
            reader.drop(self.stored, "reflection", reason)
        return good

    def reflected(self, rollout: Rollout) -> bool:
        """Whether there is a reflection on its path."""
        return self._reflection(rollout) >= 0

    def verified(self, rollout: Rollout) -> bool | None:
        """Whether a label or a verifier says that its answer is right; None: neither was there."""
        if self.stored.expected is not None:
            kind = kind_of(self.job)
            output = kind.output(self.text(rollout), self.config.turn)
            return output is not None and kind.equal(output, self.stored.expected)
        if self.config.reward == VERIFIER and rollout.scores:
            return rollout.scores[-1] >= ACCEPTED
        return None

    def about(self, rollout: Rollout) -> dict[str, Any]:
        """The origin of its text."""
        return {"rollout": rollout.rollout_id, "nodes": list(rollout.path)}

    def provenance(self, won: Rollout) -> dict[str, Any]:
        """The origin of a line with this path."""
        stored = self.stored
        return {
            "job": str(stored.job_id),
            "answer": won.answer,
            "vote": stored.share,
            "confidence": stored.confidence,
            "verified": self.verified(won),
            "model": stored.model,
            "revision": stored.revision,
            "root": stored.root,
        }

    @property
    def language(self) -> str:
        """The language of the question."""
        return profiles.language_of(kind_of(self.job).user_turn(self.job))


@dataclass(slots=True)
class Reader:
    """Reads the trees of jobs that pass the rules, and counts those that do not."""

    conn: Conn  #: of a snapshot
    rules: Rules = field(default_factory=Rules)
    dropped: Dropped = field(default_factory=Dropped)
    jobs: int = 0  #: read so far
    used: int = 0  #: of those, whose tree was read
    _roots: Any = field(default_factory=hashlib.sha256)

    @property
    def roots(self) -> str:
        """SHA-256, hex, over id and root of each job whose tree was read, in order."""
        return str(self._roots.hexdigest())

    def trees(self, chosen: Filter) -> Iterator[Tree]:
        """The trees of these jobs, by id. Raises TrailBroken naming jobs that do not verify."""
        for part in _parts(self._kept(chosen)):
            self._verify([job.job_id for job in part])
            for tree in self.read(part):
                self.used += 1
                self._roots.update(f"{tree.stored.job_id} {tree.stored.root}\n".encode())
                yield tree

    def samples(self, chosen: Filter) -> Iterator[Sample]:
        """A sample of each job that passes the rules, by job id."""
        for tree in self.trees(chosen):
            if good := tree.learnable(self):
                one = Random(f"{self.rules.seed} {tree.stored.job_id}").choice
                yield sample(tree, good[0] if self.rules.path == "best" else one(good))

    def drop(self, job: StoredJob, rule: str, reason: str) -> None:
        """Count a job that is left out."""
        self.dropped.add(rule, reason, job=str(job.job_id))

    def _kept(self, chosen: Filter) -> Iterator[StoredJob]:
        rules = job_rules(self.rules)
        for job in stored_jobs(self.conn, chosen):
            self.jobs += 1
            found = first_reason(rules, job)
            if found is None:
                yield job
            else:
                self.drop(job, *found)

    def _verify(self, job_ids: list[UUID]) -> None:
        wrong = [report for report in check_jobs(self.conn, job_ids) if report.findings]
        if wrong:
            shown = "; ".join(f"{r.job_id}: {r.findings[0]}" for r in wrong[:_SHOWN])
            raise TrailBroken(
                f"nothing was written, {len(wrong)} of {len(job_ids)} jobs do not verify: {shown}. "
                "`marco verify JOB` says more; a data set is made from what verifies only"
            )

    def read(self, part: Sequence[StoredJob]) -> Iterator[Tree]:
        """The trees of jobs with answers, except those that can't be read or rendered here."""
        ranked = queries.answers(self.conn, [str(stored.job_id) for stored in part])
        nodes: defaultdict[UUID, dict[int, NodeText]] = defaultdict(lambda: {ROOT: _ROOT})
        wanted = "audit.nodes WHERE job_id = ANY (%s)"
        for node in select(self.conn, NodeText, wanted, [[j.job_id for j in part]]):
            nodes[node.job_id][node.node_id] = node
        for stored in part:
            try:
                job, config = parse_job(stored.payload), SearchConfig.from_json(stored.config or {})
            except (InvalidJob, SearchError) as error:
                self.drop(stored, "version", f"this version can't read it: {error}")
                continue
            prompt = _prompt(job, str(stored.model), config.profile)
            if prompt is None:
                self.drop(stored, "profile", _OTHER_PROFILE)
                continue
            tree = Tree(
                rules=self.rules,
                stored=stored,
                job=job,
                config=config,
                prompt=prompt,
                nodes=nodes.pop(stored.job_id),
                rollouts=tuple(trail.rollouts(self.conn, stored.job_id, schema=views.SCHEMA)),
            )
            yield tree.with_winners(ranked[str(stored.job_id)][0])


def sample(tree: Tree, rollout: Rollout) -> Sample:
    """The sample that a path makes."""
    turn = {"role": "assistant", "content": tree.text(rollout)}
    about = tree.about(rollout) | {"reflected": tree.reflected(rollout)}
    return Sample(
        messages=(*tree.prompt, turn),
        source="traces",
        language=tree.language,
        tenant=tree.stored.tenant,
        provenance=tree.provenance(rollout) | about,
    )


_COLUMNS = ", ".join(f'j."{f.name}"' for f in fields(StoredJob) if f.name != "root")
_JOBS = f"""
    SELECT {_COLUMNS}, (SELECT c.root FROM audit.chain AS c WHERE c.job_id = j.job_id
        ORDER BY c.seq DESC LIMIT 1) AS root
    FROM audit.jobs AS j WHERE {{}} ORDER BY j.job_id
"""  # noqa: S608  # constants


def stored_jobs(conn: Conn, chosen: Filter) -> Iterator[StoredJob]:
    """These jobs by id, a few at a time."""
    condition, values = chosen.condition()
    with conn.cursor("jobs", row_factory=class_row(StoredJob)) as cursor:
        cursor.itersize = _JOBS_AT_ONCE
        yield from cursor.execute(_JOBS.format(condition).encode(), values)


def _parts(jobs: Iterable[StoredJob]) -> Iterator[list[StoredJob]]:
    part: list[StoredJob] = []
    for job in jobs:
        part.append(job)
        if len(part) == _JOBS_AT_ONCE or sum(j.nodes for j in part) >= _NODES_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


_OTHER_PROFILE = (
    "the profile that it was searched with is another here, so that its prompt can't be made again:"
    " MARCO_PROFILE, MARCO_OVERRIDES and MARCO_HOME's profiles must be as its worker had them"
)


def _prompt(job: Job, model: str, label: str) -> tuple[Message, ...] | None:
    """The messages given to the model; None if the profile of that label is not available here."""
    try:
        profile = profile_of(job.options, model)
    except InvalidProfile:
        return None
    if profile.label != label:
        return None
    examples = [(e.user, e.assistant) for e in profile.examples]
    messages = kind_of(job).messages(job, profile.system_prompt, examples)
    return tuple(asdict(message) for message in messages)
