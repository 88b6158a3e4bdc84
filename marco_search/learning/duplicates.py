"""Samples that are too much like others, or like problems that models are evaluated on.

Exact and near duplicates are found in constant memory: MinHash bands in a temporary SQLite file. A
text is the set of its shingles, runs of SHINGLE tokens. The share of shingles that two texts
have in common (Jaccard) is that of equal places in their signatures, give or take 0.05. Texts
with one of BANDS bands of a signature in common are compared, the others never (Leskovec et al.,
Mining of Massive Datasets, 3.4). Of made-up pairs that leaves out 97 in 100 at a share of 0.9, 43
at 0.8 and 2 at 0.7.

Two questions that differ in a number are two questions, however alike their words: samples
count as near duplicates only if the numbers of their prompts are the same, in digits or words.

A problem of an evaluation stands in a message if all its numbers do and at least SHARE of its
n-grams (runs of N tokens; of a shorter problem the whole). So a problem that is quoted, cut short
or rephrased in places is found, and one made from the same template with other numbers is not. One
of fewer than SHORT tokens ("Why?") must be the whole message.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from marco_search.evaluation.data_sets import load
from marco_search.kinds.answers import WORDS, worths
from marco_search.kinds.answers.numbers import DIGIT_CHARS, UNIT_CHARS
from marco_search.learning import NEAR_DUPLICATE
from marco_search.learning.filters import Rule
from marco_search.learning.samples import Message, Pair, Sample

SHINGLE = 3
N, SHARE, SHORT = 8, 0.5, 4
BANDS, _ROWS = 8, 8
_HASHES = BANDS * _ROWS
_TABLES = """
PRAGMA cache_size=-16384;
CREATE TABLE ids (id INTEGER PRIMARY KEY);
CREATE TABLE signatures (number INTEGER PRIMARY KEY, id TEXT, signature BLOB);
CREATE TABLE bands (band INTEGER PRIMARY KEY, number INTEGER);
"""
_CANDIDATES = (
    "SELECT DISTINCT id, signature FROM bands JOIN signatures USING (number)"
    " WHERE band IN (?, ?, ?, ?, ?, ?, ?, ?)"
)
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|\d+(?:[.,]\d+)*|[^\W\d_{_CJK}]+|[-+*/=^<>]")
_NUMBER_WORDS = {*worths(WORDS["ones"] | WORDS["tens"]), *DIGIT_CHARS, *UNIT_CHARS}
_MULTIPLIERS, _OFFSETS = (
    np.random.default_rng(seed).integers(1, 2**63, _HASHES, dtype=np.uint64) | np.uint64(1)
    for seed in (1, 2)
)


def tokens(text: str) -> list[str]:
    """Words, numbers, signs of arithmetic and single Chinese, Japanese or Korean characters.

    In lower case and compatibility form (NFKC): full-width digits are digits.
    """
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def numbers(words: Sequence[str]) -> list[str]:
    """Those of the tokens that are numbers in digits."""
    return [word for word in words if word[0].isdigit()]


@lru_cache(maxsize=1 << 14)
def _token_hash(token: str) -> int:
    return int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "big")


def ngram_hashes(words: Sequence[str], n: int) -> Any:
    """Hashes (uint64) of the distinct runs of `n` tokens; of all, where there are fewer."""
    n = max(1, min(n, len(words)))
    hashes = np.fromiter(map(_token_hash, words), dtype=np.uint64, count=len(words))
    found = hashes[: len(hashes) - n + 1].copy()
    for i in range(1, n):
        found = found * np.uint64(0x9E3779B97F4A7C15) + hashes[i : len(hashes) - n + 1 + i]
    return np.unique(found)


def signature(words: Sequence[str]) -> Any:
    """MinHash of a text: _HASHES numbers (uint32). Empty texts have equal ones."""
    shingles = ngram_hashes(words, SHINGLE)
    if not len(shingles):
        return np.zeros(_HASHES, dtype=np.uint32)
    # Multiply-add-shift (Dietzfelbinger): the high half of a 64-bit word.
    mixed = (shingles[:, None] * _MULTIPLIERS + _OFFSETS) >> np.uint64(32)
    return mixed.min(axis=0).astype(np.uint32)


def prompt_key(prompt: Sequence[Message]) -> str:
    """16 hex digits: the same for prompts whose users say the same tokens."""
    present = [t for m in prompt if m["role"] == "user" for t in tokens(m["content"])]
    return hashlib.sha256(" ".join(present).encode()).hexdigest()[:16]


@contextmanager
def scratch_database(tables: str) -> Iterator[sqlite3.Connection]:
    """A SQLite database with these tables, gone after the block: what does not fit into memory."""
    with (
        tempfile.TemporaryDirectory(prefix="marco-dataset-") as folder,
        closing(sqlite3.connect(Path(folder) / "scratch.sqlite", isolation_level=None)) as db,
    ):
        db.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {tables} BEGIN")
        yield db


@contextmanager
def rules(threshold: float | None = NEAR_DUPLICATE) -> Iterator[dict[str, Rule]]:
    """The rules "duplicate" and "near_duplicate": of rows that are alike the first one stays.

    `threshold` is the share of common shingles; None: exact duplicates only.
    """
    with scratch_database(_TABLES) as db:
        found = {"duplicate": Rule(partial(_equal, db))}
        if threshold is not None:
            about = {"threshold": threshold, "shingle": SHINGLE, "hashes": _HASHES, "bands": BANDS}
            found["near_duplicate"] = Rule(partial(_near, db, threshold), about)
        yield found


def _equal(db: sqlite3.Connection, row: Sample | Pair) -> str | None:
    key = int(row.id, 16) - (1 << 63)  # SQLite's integers have a sign
    new = db.execute("INSERT OR IGNORE INTO ids VALUES (?)", (key,)).rowcount
    return None if new else f"the same text as {row.id}"


def _near(db: sqlite3.Connection, threshold: float, row: Sample | Pair) -> str | None:
    texts = list(map(tokens, row.contents))
    if not any(texts):  # signs only: they have no runs of words in common
        return None
    ours = signature(list(chain.from_iterable(texts)))
    bands = _bands(ours, chain.from_iterable(texts[: len(row.prompt)]))
    for other, theirs in db.execute(_CANDIDATES, bands):
        share = float(np.mean(np.frombuffer(theirs, dtype=np.uint32) == ours))
        if share >= threshold:
            return f"about {share:.0%} of its runs of {SHINGLE} words are in {other}"
    number = db.execute(
        "INSERT INTO signatures (id, signature) VALUES (?, ?)", (row.id, ours.tobytes())
    ).lastrowid
    db.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(b, number) for b in bands])
    return None


def _bands(signature: Any, words: Iterable[str]) -> list[int]:
    """Keys of the bands; those of prompts with other numbers all differ."""
    present = (word for word in words if word[0].isdigit() or word in _NUMBER_WORDS)
    key = _token_hash(" ".join(present))
    keys = (signature.astype(np.uint64) * _MULTIPLIERS).reshape(BANDS, _ROWS).sum(axis=1)
    keys = (keys + np.uint64(key)) * _MULTIPLIERS[:BANDS]
    return list(keys.view(np.int64).tolist())


def contamination(sets: Sequence[str]) -> dict[str, Rule]:
    """The rule "contaminated", against sets as `marco eval` names them; none without sets.

    Memory is in proportion to the sets, not to the samples. Raises InvalidDataSet.
    """
    if not sets:
        return {}
    problems = [
        (f"problem {number} of {name}", problem.job.subject)
        for name in sets
        for number, problem in enumerate(load(name), start=1)
    ]
    parameters = {"sets": list(sets), "problems": len(problems), "n": N, "share": SHARE}
    return {"contaminated": Rule(Problems(problems).reason, parameters)}


class Problems:
    """The n-grams of problems."""

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        """`problems`: what to call each, and its text."""
        # Name, number of n-grams, numbers in it.
        self._long: list[tuple[str, int, set[str]]] = []
        self._short: dict[tuple[str, ...], str] = {}
        # Length of the n-grams, N but for shorter problems, to n-gram to the problems that have it.
        self._indexes: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for name, text in problems:
            words = tokens(text)
            if len(words) < SHORT:
                self._short[tuple(words)] = name
                continue
            grams = ngram_hashes(words, N).tolist()
            for gram in grams:
                self._indexes[min(N, len(words))][gram].append(len(self._long))
            self._long.append((name, len(grams), set(numbers(words))))

    def reason(self, row: Sample | Pair) -> str | None:
        """Which problem stands in a row, and how much of it; None: none does."""
        for text in row.contents:
            words = tokens(text)
            if words and (name := self._short.get(tuple(words))):
                return f"it is {name}"
            present = set(numbers(words))
            for problem, hits in self._hits(words).items():
                name, size, its_numbers = self._long[problem]
                if hits / size >= SHARE and its_numbers <= present:
                    return f"{hits / size:.0%} of the n-grams of {name}"
        return None

    def _hits(self, words: Sequence[str]) -> Counter[int]:
        """How many of its n-grams stand in a text, for each problem that has any there."""
        return Counter(
            problem
            for n, index in self._indexes.items()
            if n <= len(words)
            for gram in ngram_hashes(words, n).tolist()
            for problem in index.get(gram, ())
        )
