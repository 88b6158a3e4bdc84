"""The rules of the newest audit format are those that this version writes by.

If one of these tests fails, a rule was changed: write a new format (marco_search.audit.formats)
with the new rule, and leave the older ones as they are.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marco_search.audit import canonical
from marco_search.audit import tree as rules
from marco_search.audit.chain import JOB, Link, check_link, follow
from marco_search.audit.findings import Status
from marco_search.audit.formats import FORMATS, NEWEST, payload_hashes
from marco_search.audit.numbers import check_answers
from marco_search.audit.proofs import NO_SALT, prove
from marco_search.audit.verify import Evidence, SealedRun, check_job
from marco_search.jobs import SearchOptions, payload_hash
from marco_search.kinds import KINDS, parse_job
from marco_search.search.mcts import branch_seed
from marco_search.search.votes import Candidate, Scale, rank

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
JOB_ID = UUID(int=1)
MODELS = [kind.model for kind in KINDS.values()]
APART = {"tenant", "idempotency_key", "expected", "custom_id"}


def test_the_newest_format_knows_the_default_of_every_field() -> None:
    fields, options = FORMATS[NEWEST].payload
    models = [(options, SearchOptions)] + [(fields, model) for model in MODELS]
    for known, model in models:
        for name, field in model.model_fields.items():
            if (
                name in ("options", "tenant", "idempotency_key", "custom_id", "kind")
                or field.is_required()
            ):
                continue
            default = field.get_default(call_default_factory=True)
            assert known.get(name, "unknown") == default, name


@given(
    st.fixed_dictionaries(
        {"kind": st.just("reasoning"), "question": st.just("q鞋\"\\")},
        optional={
            "priority": st.sampled_from(["low", "normal", "high"]),
            "expected": st.just("7"),
            "deadline": st.just("2030-01-31T18:00:00+01:00"),
            "metadata": st.dictionaries(
                st.sampled_from("abc"),
                st.one_of(
                    st.integers(-(2**63), 2**63 - 1), st.booleans(), st.just("x"),
                    st.floats(-(2.0**62), 2.0**62),
                ),
            ),
            "options": st.fixed_dictionaries(
                {},
                optional={
                    "rollouts": st.sampled_from([1, 16]), "temperature": st.sampled_from([0.7, 1]),
                    "seed": st.integers(0, 9), "early_stop": st.booleans(),
                },
            ),
        },
    )
)  # fmt: skip
def test_the_payloads_hash_follows_from_what_is_stored(data: dict[str, Any]) -> None:
    job = parse_job(data)
    stored = as_jsonb(job.model_dump(mode="json", exclude=APART))
    found = payload_hashes(stored, job.expected, *FORMATS[NEWEST].payload)
    numbers = [v for v in job.metadata.values() if isinstance(v, int) and abs(v) >= 10**16]
    whole = [v for v in job.metadata.values() if isinstance(v, float) and abs(v) >= 10**16]
    if not (numbers and whole):  # which of several were floats is not tried
        assert payload_hash(job) in list(found)


def as_jsonb(value: object) -> str:
    """The text that Postgres shows of a jsonb: a number has no exponent."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {as_jsonb(v)}" for k, v in value.items()) + "}"
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else json.dumps(value)


def rollout(place: int, answer: str | None, value: float) -> SimpleNamespace:
    return SimpleNamespace(rollout_id=place, path_confidence=value, answer=answer)


TEXTS = (
    "the bread basket on main street", "the bread baskets on main street", "crumbs", "loaf",
    "bread basket on main street", "面包房", "面包坊",
)  # fmt: skip


@given(
    votes=st.lists(
        st.tuples(st.sampled_from([*TEXTS, None]), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])),
        min_size=1, max_size=12,
    ),
    how=st.sampled_from(["vote", "weighted", "best"]),
    kind=st.sampled_from(["reasoning", "open_ended"]),
    shown=st.integers(1, 4),
)  # fmt: skip
def test_what_a_search_ranks_fits(
    votes: list[tuple[str | None, float]], how: Any, kind: str, shown: int
) -> None:
    """And one vote more or less does not."""
    config = {"choice": how, "sharpness": 2.0}
    rows = [rollout(i, key, value) for i, (key, value) in enumerate(votes)]
    voters = [r for r in rows if r.answer is not None]
    keys = KINDS[kind].merge([(str(r.answer), r.path_confidence) for r in voters])
    candidates = [
        Candidate(key=k, value=r.path_confidence, rollout_id=r.rollout_id)
        for k, r in zip(keys, voters, strict=True)
    ]
    ranked = rank(candidates, how, Scale(sharpness=2.0))[:shown]
    answers = [
        SimpleNamespace(
            rank=i,
            confidence=a.confidence,
            votes=a.votes,
            share=a.share,
            rollout_ids=a.rollout_ids,
            key=a.key,
        )
        for i, a in enumerate(ranked, start=1)
    ]
    job, payload = {"state": "succeeded", "kind": kind}, {"options": {"answers": shown}}

    def found() -> list[Any]:
        return list(check_answers(job, payload, config, rows, answers))

    assert found() == []
    if answers:
        answers[0].votes += 1
        assert found()[0].what == "votes"
        answers[0].votes -= 1
        answers[0].key = "another"
        assert found()
        answers.clear()
        assert found()


def test_seeds_are_those_of_the_search() -> None:
    assert [rules.branch_seed(7, i) for i in range(5)] == [branch_seed(7, i) for i in range(5)]


def test_each_format_has_its_own_head() -> None:
    first = Link(seq=0, kind="first", job_id=None, root=b"r" * 32, previous=b"\x00" * 32,
                 head=b"h" * 32, at=NOW, format=1)  # fmt: skip
    heads = {
        follow(first, kind=JOB, job_id=JOB_ID, root=b"x" * 32, at=NOW, format=number).head
        for number in FORMATS
    }
    assert len(heads) == len(FORMATS)


def test_a_format_that_only_a_newer_version_knows_is_said_and_is_no_tampering() -> None:
    first = Link(seq=0, kind="first", job_id=None, root=b"r" * 32, previous=b"\x00" * 32,
                 head=b"h" * 32, at=NOW, format=1)  # fmt: skip
    link = Link(seq=1, kind=JOB, job_id=JOB_ID, root=b"x" * 32, previous=first.head,
                head=b"n" * 32, at=NOW, format=NEWEST + 1)  # fmt: skip
    finding = check_link(link, first)
    assert finding is not None
    assert finding.unknown
    assert "newer" in str(finding)
    values = {"id": JOB_ID, "state": "cancelled", "tenant": "t", "kind": "reasoning"}
    kinds = FORMATS[NEWEST].kinds
    rows = {
        name: [
            (0, canonical.encode(kinds[name].columns, [values.get(c) for c in kinds[name].columns]))
        ]
        for name in ("request", "outcome")
    }
    report = check_job(
        Evidence(
            job_id=JOB_ID,
            rows={NEWEST: rows},
            sealed=[SealedRun(link=link, proof=None, finding=finding)],
        )
    )
    assert report.status is Status.UNKNOWN


ROOTS = {
    1: "c1e7b15b534e9ece3bea7797bdf9377edcf1b2496dcbb00b8295821897e4574b",  # of version 0.1.0
    2: "c1e7b15b534e9ece3bea7797bdf9377edcf1b2496dcbb00b8295821897e4574b",
    3: "22f95f44eca9faebfdc82466ed9d51f33eb483f0713137743a00beda7fde2eda",
    4: "ab4187e65c8cb6ff6137c8056fb2a64b377d2f49b44d818a0a2b6e8df420fbc5",
}


@pytest.mark.parametrize("number", FORMATS)
def test_a_format_never_changes(number: int) -> None:
    """Of one made-up row of each kind; a change of columns or of hashing shows here."""
    samples: dict[str, Any] = {
        "uuid": JOB_ID, "text": "ü", "int2": 1, "int4": 2, "int8": 3, "float8": 0.5,
        "float4": 0.25, "bool": True, "jsonb": '{"a": 1}', "timestamptz": NOW, "int4[]": [1],
        "float4[]": [0.5], "float8[]": [0.5], "text[]": ["a", "b"],
    }  # fmt: skip
    rows = {
        name: [(1, canonical.encode(kind.columns, [samples[t] for t in kind.columns.values()]))]
        for name, kind in FORMATS[number].kinds.items()
    }
    assert prove(rows, FORMATS[number].kinds, NO_SALT).root.hex() == ROOTS[number]


@pytest.mark.parametrize("payload", ["[]", "1", '{"options": 3}', "[" * 5000 + "]" * 5000])
def test_a_payload_that_nobody_submitted_has_no_hash_that_fits(payload: str) -> None:
    try:
        found = list(payload_hashes(payload, None, *FORMATS[1].payload))
    except (ValueError, RecursionError):
        return
    assert "0" * 64 not in found
