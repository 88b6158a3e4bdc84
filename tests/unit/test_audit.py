"""Hashes, the chain and recomputation, without a database."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marco_search.audit import anchors
from marco_search.audit.chain import FIRST, JOB, Link, check_links, follow
from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.audit.proofs import NO_SALT, Kind, merkle_root, prove, unpack
from marco_search.audit.tree import vector_confidences
from marco_search.errors import ArchiveRefused, InvalidAnchor
from marco_search.search.rewards import token_confidence
from marco_search.store.seal import archives

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
KINDS = FORMATS[1].kinds
JOBS = [UUID(int=i) for i in range(1, 5)]

ANCHOR = {
    "format": "marco-anchor 1", "database": "ab" * 32, "seq": 7, "head": "cd" * 32, "jobs": 5,
    "chained_at": "2026-11-22T12:00:00+00:00", "made_at": "2026-11-22T12:01:00+00:00",
    "public_key": None, "signature": None,
}  # fmt: skip


def chain() -> list[Link]:
    links = [follow(None, kind=FIRST, job_id=None, root=b"r" * 32, at=NOW, format=1)]
    for job_id in JOBS:
        root = sha256(job_id.bytes).digest()
        links.append(follow(links[-1], kind=JOB, job_id=job_id, root=root, at=NOW, format=NEWEST))
    return links


def test_the_merkle_tree_is_that_of_rfc_6962() -> None:
    def recursive(leaves: list[bytes]) -> bytes:
        """The definition, word for word."""
        if len(leaves) == 1:
            return leaves[0]
        k = 1
        while k * 2 < len(leaves):
            k *= 2
        return sha256(b"\x01" + recursive(leaves[:k]) + recursive(leaves[k:])).digest()

    assert merkle_root([]) == sha256(b"").digest()
    for count in range(1, 40):
        leaves = [sha256(bytes([i])).digest() for i in range(count)]
        assert merkle_root(leaves) == recursive(leaves)


def test_a_row_of_one_kind_does_not_pass_for_one_of_another() -> None:
    kinds = {name: Kind("", "", "", {}) for name in ("node", "answer")}
    proof = prove({"node": [(1, b"x")], "answer": [(1, b"x")]}, kinds, NO_SALT)
    assert proof.hashes["node"] != proof.hashes["answer"]


def test_a_proof_comes_back_as_it_was_kept() -> None:
    rows = {"request": [(0, b"q")], "outcome": [(0, b"o")], "node": [(1, b"a"), (2, b"b")]}
    proof = prove(rows, KINDS, NO_SALT)
    keys = {kind: list(proof.hashes[kind]) for kind in KINDS}
    assert unpack(keys, proof.packed(), KINDS) == proof
    assert unpack(keys, proof.packed()[:-1], KINDS) is None
    assert proof.root == merkle_root([h for kind in KINDS for h in proof.hashes[kind].values()])


def test_an_untouched_chain_fits() -> None:
    assert list(check_links(chain())) == []


@pytest.mark.parametrize(
    "name", ["seq", "kind", "job_id", "root", "previous", "head", "at", "format"]
)
def test_every_column_of_a_link_counts(name: str) -> None:
    links = chain()
    changed: dict[str, Any] = {
        "seq": 7,
        "kind": "archive",
        "job_id": UUID(int=9),
        "root": b"x" * 32,
        "previous": b"x" * 32,
        "head": b"x" * 32,
        "at": NOW + timedelta(microseconds=1),
        "format": 1,
    }
    links[2] = replace(links[2], **{name: changed[name]})
    assert next(iter(check_links(links))).key.startswith("seq 2")


def test_a_missing_link_is_named() -> None:
    links = chain()
    del links[2]
    assert next(iter(check_links(links))).key == "seq 2"
    assert next(iter(check_links([]))).key == "seq 0"


def test_an_anchor_holds_as_the_chain_grows_and_not_when_it_shrinks() -> None:
    links = chain()
    anchor = anchors.make(links[0], links[3], jobs=3)
    assert list(anchors.check_anchor(anchor, links[0], links[3], links[4], jobs=3)) == []
    (cut,) = anchors.check_anchor(anchor, links[0], None, links[2], jobs=2)
    assert "tail was cut" in cut.what
    (other,) = anchors.check_anchor(anchor, replace(links[0], head=b"x" * 32), None, None, jobs=0)
    assert other.what == "another database"


def test_an_anchor_of_a_clock_that_was_set_back_holds() -> None:
    """The database's, a day ahead until after the anchor; the anchor's maker may share it."""
    links = chain()[:2]
    about: dict[str, Any] = {"kind": JOB, "job_id": JOBS[1], "root": b"", "format": NEWEST}
    links.append(follow(links[-1], at=NOW + timedelta(days=1), **about))
    links.append(follow(links[-1], at=NOW + timedelta(minutes=5), **about))
    first, _, ahead, after = links
    anchor = anchors.make(first, ahead, jobs=2)
    for late in (timedelta(minutes=2), timedelta(days=1, minutes=2)):
        made = anchor.model_copy(update={"made_at": (NOW + late).isoformat()})
        assert not list(anchors.check_anchor(made, first, ahead, after, jobs=2, after=after))


BOMB = "[" * 100_000 + "]" * 100_000
NESTED = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    "text",
    [
        BOMB, NESTED, "1", "null", '"x"', "[]", "{}", '{"format": 1}', "\ud800", "{" * 2000,
        '{"format": "marco-anchor %s"}' % ("9" * 5000),
        *(
            json.dumps(ANCHOR).replace(json.dumps(value), new, 1)
            for value in ANCHOR.values() for new in (NESTED, "true", "-1", '"x"', "null", "1e999")
            if value is not None
        ),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_file_that_is_no_anchor_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "anchor.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(InvalidAnchor, match=r"anchor\.json"):
        anchors.read(path)


def test_an_anchor_of_a_newer_version_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "anchor.json"
    path.write_text(json.dumps(ANCHOR | {"format": "marco-anchor 2", "more": 1}))
    with pytest.raises(InvalidAnchor, match="newer"):
        anchors.read(path)


@pytest.mark.parametrize(
    "text",
    [
        BOMB, NESTED, "1", "null", '"x"', "[]", "{}",
        '{"format": "marco-archive 1"}', '{"format": "marco-archive 2", "files": []}',
        '{"format": "marco-archive 1", "name": "x", "first": 1, "before": 2, "files": {}}',
        '{"format": "marco-archive 1", "name": "x", "first": "x", "before": "y", "files": {}}',
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_text_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ArchiveRefused):
        archives.parse(text)


def test_an_archive_of_a_newer_version_is_said_to_be_one() -> None:
    with pytest.raises(ArchiveRefused, match="newer"):
        archives.parse('{"format": "marco-archive 4"}')


float32 = st.floats(-80, 0, width=32)


@given(st.lists(st.tuples(float32, st.lists(float32, min_size=1, max_size=5)), min_size=1))
def test_confidences_computed_all_at_once_are_those_of_the_search(
    tokens: list[tuple[float, list[float]]],
) -> None:
    """Also for a token outside the best five, and where there were fewer than five."""
    tops = np.array([[*top, *[-np.inf] * (5 - len(top))] for _, top in tokens])
    found = vector_confidences(np.array([p for p, _ in tokens]), tops)
    assert found.tolist() == pytest.approx([token_confidence(p, t) for p, t in tokens], abs=1e-12)
