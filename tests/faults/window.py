"""The window in which Celery on Redis loses a message: after BRPOP, before it is noted.

BRPOP takes a message off the list before the worker can note that it has it. A worker that
is stopped just then and killed takes the message with it. Plain Celery has no other copy;
here the job's row is one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kombu import pools

from ops.bench import queue as plain
from tests.faults.rig import ROOT, Member, Rig, wait_until
from tests.faults.storm import job


@dataclass(frozen=True, slots=True)
class Window:
    """Of `sent` messages or jobs: how many messages vanished, how many never ran."""

    sent: int
    messages_gone: int
    never_ran: int


def plain_celery(rig: Rig, count: int) -> Window:
    """Stop `count` idle workers of plain Celery, send them a task each, kill them."""
    env = os.environ | rig.environment() | {"PYTHONPATH": str(ROOT)}
    os.environ["REDIS_URL"] = rig.urls.redis_url  # of the app that publishes here
    with rig.redis() as client, contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_plain_worker(f"plain-{i}", env)) for i in range(count)]
        wait_until(lambda: _blocked(client) >= count, "all workers wait")
        _stop(workers)
        for number in range(count):
            plain.note.apply_async([number])
        gone = count - _left(lambda: int(client.llen(plain.QUEUE)))
        _kill(workers)
        stack.enter_context(_plain_worker("plain-new", env))
        plain.note.apply_async([count])
        wait_until(lambda: _noted(client, count), "a fresh worker has got through the queue")
        ran = sum(_noted(client, number) for number in range(count))
        client.delete(plain.DONE, plain.QUEUE)
    pools.reset()  # of plain Celery in this process: its connections would count as leaked
    return Window(count, gone, count - ran)


@contextlib.contextmanager
def _plain_worker(name: str, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        plain.plain_worker(name, 1), cwd=ROOT, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        _kill([process])


def marco_search(rig: Rig, count: int, first: int) -> tuple[Window, Member]:
    """The same with our workers and jobs (numbered from `first`). A scheduler must run.

    Also the fresh worker, which goes on.
    """
    with rig.redis() as client:
        before = _blocked(client)
        members = [rig.start_worker(f"window-{i}", 1) for i in range(count)]
        wait_until(lambda: _blocked(client) >= before + count, "all workers wait")
        _stop([m.process for m in members])
        wave = [job(first + i, 16) for i in range(count)]
        handles = rig.producer.submit_many(wave)
        gone = count - _left(lambda: int(client.llen("marco")))
        for member in members:
            rig.forget(member)
        _kill([m.process for m in members])
    fresh = rig.start_worker("window-new", 2, MARCO_STOP_S="3")
    results = rig.producer.wait(handles, timeout_s=120)
    return Window(count, gone, sum(result.state != "succeeded" for result in results)), fresh


def _blocked(client: object) -> int:
    """Connections that wait in BRPOP."""
    return sum(c["cmd"] == "brpop" for c in client.client_list())  # type: ignore[attr-defined]


def _noted(client: object, number: int) -> bool:
    done = client.lrange(plain.DONE, 0, -1)  # type: ignore[attr-defined]
    return any(line.split()[0] == str(number).encode() for line in done)


def _left(length: Callable[[], int]) -> int:
    """What stays on the list once those that waited have been served: at most a second."""
    deadline = time.monotonic() + 1.5
    while length() and time.monotonic() < deadline:
        time.sleep(0.05)
    return length()


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)


def _kill(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
