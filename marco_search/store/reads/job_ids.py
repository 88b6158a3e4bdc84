"""Which jobs a reader means: those named by words, or all in a state.

Reads the views of the schema `audit` only, so that an auditor's login is enough.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from marco_search.errors import AmbiguousJob, InvalidJob, JobNotFound
from marco_search.jobs.validation import shown
from marco_search.store.db import Conn

_SHORTEST, _WHOLE = 4, 32  # hexadecimal digits of an id
# Two are enough to see that there are several. In order: else the primary key may go unused.
BEGINNINGS = """
SELECT given.part, found.job_id
FROM unnest(%(parts)s::text[], %(first)s::uuid[], %(last)s::uuid[]) AS given (part, first, last),
LATERAL (
    SELECT job_id FROM audit.jobs
    WHERE job_id BETWEEN given.first AND given.last AND tenant = %(tenant)s
    ORDER BY job_id LIMIT 2
) AS found
"""
# Looked up in a hash of them: a join would go through all of them for each job.
_ENDS = """
SELECT right(replace(job_id::text, '-', ''), %(length)s), job_id FROM audit.jobs
WHERE tenant = %(tenant)s
    AND right(replace(job_id::text, '-', ''), %(length)s) = ANY (%(parts)s::text[])
"""


def find_jobs(conn: Conn, words: Sequence[str], tenant: str) -> list[UUID]:
    """The jobs that these words name: ids, or the beginning or end of an id.

    Ids begin with the time of submission, so jobs of one batch differ at the end first. However
    many there are, ids and their beginnings take one statement on the primary key; ends of one
    length take one pass over the jobs. Raises JobNotFound, AmbiguousJob, or InvalidJob for what
    can't be part of an id.
    """
    parts = [_hexadecimal(word) for word in words]
    distinct = list(set(parts))
    found: defaultdict[str, set[UUID]] = defaultdict(set)
    ranges = {
        "parts": distinct,
        "first": [part.ljust(_WHOLE, "0") for part in distinct],
        "last": [part.ljust(_WHOLE, "f") for part in distinct],
    }
    for part, job_id in conn.execute(BEGINNINGS, {"tenant": tenant, **ranges}):
        found[part].add(job_id)
    for length in {len(part) for part in distinct if len(part) < _WHOLE}:
        ends = [part for part in distinct if len(part) == length]
        given = {"tenant": tenant, "parts": ends, "length": length}
        for part, job_id in conn.execute(_ENDS, given):
            found[part].add(job_id)
    return [_only(word, found[part], tenant) for word, part in zip(words, parts, strict=True)]


def _hexadecimal(word: str) -> str:
    """The digits of an id or of a part of one."""
    part = word.strip().lower()
    if not re.fullmatch(r"[0-9a-f-]+", part):
        raise InvalidJob("JOB", f"invalid job id {shown(word)}: ids have digits, a to f, dashes")
    part = part.replace("-", "")
    if len(part) < _SHORTEST:
        raise InvalidJob("JOB", f"{word!r} is too short: give at least {_SHORTEST} characters")
    if len(part) > _WHOLE:
        raise InvalidJob("JOB", f"invalid job id {shown(word)}: longer than an id")
    return part


def _only(word: str, found: set[UUID], tenant: str) -> UUID:
    if not found:
        raise JobNotFound(f"no job {word} of tenant {tenant!r}; `marco status` lists the latest")
    if len(found) > 1:
        raise AmbiguousJob(f"{word} fits several jobs: give more of the id")
    return next(iter(found))


def jobs_of(conn: Conn, tenant: str, *, finished: bool) -> list[UUID]:
    """The tenant's jobs that have ended, or those that have not, oldest first."""
    ended = "IS NOT NULL" if finished else "IS NULL"
    query = (
        f"SELECT job_id FROM audit.jobs WHERE tenant = %s AND finished_at {ended}"  # noqa: S608
        " ORDER BY created_at, job_id"
    )
    return [row[0] for row in conn.execute(query, [tenant])]


def state_counts(conn: Conn, tenant: str) -> dict[str, int]:
    """How many jobs of a tenant are in each state."""
    query = "SELECT state, count(*) FROM audit.jobs WHERE tenant = %s GROUP BY state ORDER BY state"
    return dict(conn.execute(query, [tenant]).fetchall())
