"""Naming jobs, and what a wait looks at next."""

from __future__ import annotations

from uuid import uuid4

import pytest

from marco_search.errors import JobNotFound, WaitTimeout
from marco_search.store.queue.jobs import JobHandle, new_job_id
from marco_search.store.queue.states import JobState
from producer.handles import job_uuid, job_uuids
from producer.waits import Pending


def test_a_job_is_named_by_handle_uuid_or_text() -> None:
    one = uuid4()
    handle = JobHandle(id=one, state=JobState.QUEUED, created=True)
    assert str(handle) == str(one)
    assert job_uuids([handle, one, str(one)]) == [one] * 3
    assert job_uuids(handle) == [one]
    with pytest.raises(JobNotFound, match="invalid job id"):
        job_uuid("../../etc/passwd")


def test_job_ids_are_uuids_that_sort_by_time() -> None:
    ids = [new_job_id() for _ in range(100)]
    assert {i.version for i in ids} == {7}
    assert {i.variant for i in ids} == {uuid4().variant}
    assert len(set(ids)) == 100
    times = [i.int >> 80 for i in ids]
    assert times == sorted(times)


def test_a_wait_looks_at_what_it_heard_of() -> None:
    ids = [uuid4() for _ in range(3)]
    pending = Pending([*ids, ids[0]], None)
    assert pending.to_read == ids
    pending.done(ids[0])
    pending.notified([ids[0], ids[2], uuid4()])
    assert pending.to_read == [ids[2]]
    pending.notified([])
    assert pending.to_read == []
    pending.notified([ids[1], None])
    assert pending.to_read == ids[1:]


def test_a_wait_without_word_looks_again_by_itself() -> None:
    now = [0.0]
    ids = [uuid4()]
    pending = Pending(ids, 5.0, clock=lambda: now[0])
    assert pending.patience() == 2.0
    now[0] = 2.0
    pending.notified([])
    assert pending.to_read == ids
    now[0] = 4.5
    assert pending.patience() == 0.0
    pending.notified([])
    assert pending.patience() == 0.5
    now[0] = 5.0
    with pytest.raises(WaitTimeout, match="1 of 1 jobs"):
        pending.patience()
