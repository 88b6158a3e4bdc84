"""The faults: each breaks one thing at a moment and says which jobs it hit.

A fault that lasts (an outage) returns when it is over: recovery is counted from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from uuid import UUID

from marco_search.broker import Publisher
from tests.faults.model import MISBEHAVIOURS
from tests.faults.rig import Rig, wait_until


@dataclass(frozen=True, slots=True)
class Hit:
    """What a fault touched, and by what the recovery is known."""

    jobs: dict[UUID, int]  # to their rounds then; recovered when all have gone on
    queue: bool = False  # recovered when a job that was in the queue is claimed


@dataclass(slots=True)
class Context:
    """What faults need, and how many seconds an outage of either service lasts."""

    rig: Rig
    random: Random
    redis_down_s: float
    postgres_down_s: float


Fault = Callable[[Context], Hit]


def _busy(context: Context) -> list[tuple[UUID, int, int, int]]:
    """Running jobs, once there is one."""
    found: list[list[tuple[UUID, int, int, int]]] = [[]]

    def look() -> bool:
        found[0] = context.rig.running()
        return bool(found[0])

    wait_until(look, "a job runs")
    return found[0]


def _all(context: Context) -> Hit:
    return Hit({job: rounds for job, _, rounds, _ in context.rig.running()})


def _held_by(context: Context, pids: set[int]) -> Hit:
    return Hit({job: rounds for job, _, rounds, pid in context.rig.running() if pid in pids})


def kill_child(context: Context) -> Hit:
    """kill -9 of the process that searches a job."""
    job, _, rounds, pid = context.random.choice(_busy(context))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return Hit({job: rounds})


def _worker_pids(context: Context) -> tuple[int, set[int]]:
    workers = [m for m in context.rig.members if m.name.startswith("worker")]
    main = context.random.choice(workers).process.pid
    return main, {p for p in context.rig.processes() if _group(p) == main}


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def kill_worker(context: Context) -> Hit:
    """kill -9 of a whole worker with its processes, as a lost machine."""
    main, pids = _worker_pids(context)
    hit = _held_by(context, pids)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(main, signal.SIGKILL)
    return hit


def kill_main(context: Context) -> Hit:
    """kill -9 of a worker's main process only: its children are orphans."""
    main, pids = _worker_pids(context)
    hit = _held_by(context, pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(main, signal.SIGKILL)
    return hit


def kill_scheduler(context: Context) -> Hit:
    """kill -9 of one of the two schedulers."""
    schedulers = [m for m in context.rig.members if m.name.startswith("scheduler")]
    with contextlib.suppress(ProcessLookupError):
        os.kill(context.random.choice(schedulers).process.pid, signal.SIGKILL)
    return Hit({}, queue=True)


def stop_child(context: Context) -> Hit:
    """SIGSTOP of a process in the middle of a search; it wakes when its lease is lost."""
    job, generation, rounds, pid = context.random.choice(_busy(context))

    def taken() -> bool:
        rows = context.rig.ask(
            "SELECT lease_generation > %s OR finished_at IS NOT NULL FROM jobs WHERE id = %s",
            generation, job,
        )  # fmt: skip
        return bool(rows[0][0])

    def wake() -> None:
        try:
            wait_until(taken, "another process takes the job over")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    threading.Thread(target=wake, daemon=True).start()
    return Hit({job: rounds})


def kill_redis(context: Context) -> Hit:
    """kill -9 of Redis."""
    os.kill(context.rig.server("redis").pid, signal.SIGKILL)
    wait_until(lambda: context.rig.answers("redis"), "Redis is back")
    return Hit({}, queue=True)


def flush_redis(context: Context) -> Hit:
    """FLUSHALL: every message is gone."""
    context.rig.server("redis")
    with context.rig.redis() as client:
        client.flushall()
    return Hit({}, queue=True)


def redis_down(context: Context) -> Hit:
    """Redis refuses connections for a while."""
    _take_away(context.rig, "redis", context.redis_down_s)
    return Hit({}, queue=True)


def kill_postgres(context: Context) -> Hit:
    """kill -9 of Postgres."""
    hit = _all(context)
    os.kill(context.rig.server("postgres").pid, signal.SIGKILL)
    wait_until(lambda: context.rig.answers("postgres"), "Postgres is back")
    return hit


def postgres_down(context: Context) -> Hit:
    """Postgres refuses connections for a while."""
    hit = _all(context)
    _take_away(context.rig, "postgres", context.postgres_down_s)
    return hit


def _take_away(rig: Rig, name: str, seconds: float) -> None:
    process = rig.server(name)
    with rig.unattended():
        os.kill(process.pid, signal.SIGKILL)
        time.sleep(seconds)  # the outage itself
    wait_until(lambda: rig.answers(name), f"{name} is back")


def restart_in_copy(context: Context) -> Hit:
    """Postgres is restarted in the middle of a COPY of nodes."""
    slow = "PERFORM pg_sleep(0.05); RETURN NEW;"
    with _trigger(context.rig, slow, "FOR EACH ROW"):

        def copying() -> bool:
            query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY nodes %%'"
            return bool(context.rig.ask(query + " AND state = 'active'")[0][0])

        wait_until(copying, "a COPY runs")
        hit = _all(context)
        process = context.rig.server("postgres")
        os.kill(process.pid, signal.SIGINT)
        wait_until(lambda: not process.alive, "Postgres has gone")
    return hit


def full_disk(context: Context) -> Hit:
    """Writing nodes fails for want of disk space, for a while."""
    fail = "RAISE EXCEPTION 'could not extend file: No space left' USING ERRCODE = 'disk_full';"
    with _trigger(context.rig, fail, "FOR EACH STATEMENT"):
        hit = _all(context)
        time.sleep(context.random.uniform(0.5, 2.0))  # the outage itself
    return hit


@contextlib.contextmanager
def _trigger(rig: Rig, body: str, scope: str) -> Iterator[None]:
    rig.ask(
        "CREATE OR REPLACE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body} END $$; CREATE OR REPLACE TRIGGER fault BEFORE INSERT ON nodes {scope}"
        " EXECUTE FUNCTION fault()"
    )
    try:
        yield
    finally:
        rig.ask("DROP TRIGGER IF EXISTS fault ON nodes")


def misbehaving(how: str) -> Fault:
    """The model server answers so for a while."""

    def fault(context: Context) -> Hit:
        hit = _all(context)
        seconds = context.random.uniform(0.5, 2.0)
        context.rig.model.misbehave(how, seconds)
        time.sleep(seconds)  # the outage itself
        return hit

    fault.__doc__ = f"The model server's answers: {how}."
    return fault


def jump_clock(context: Context) -> Hit:
    """The wall clock of a worker jumps by ten minutes, either way, or back."""
    skewed = [m.clock for m in context.rig.members if m.clock is not None]
    clock = context.random.choice(skewed)
    before = struct.unpack("d", clock.read_bytes())[0]
    shift = context.random.choice([s for s in (-600.0, 0.0, 600.0) if s != before])
    with clock.open("r+b") as file:  # in place: the file is mapped
        file.write(struct.pack("d", shift))
    return _all(context)


def duplicate(context: Context) -> Hit:
    """Every job's message once more, also of those that have ended."""
    rows = context.rig.ask("SELECT id FROM jobs")
    publisher = Publisher(context.rig.urls.redis_url, "marco")
    context.rig.server("redis")
    try:
        publisher.publish([job for (job,) in rows])
    finally:
        publisher.close()
    return Hit({}, queue=True)


def vanished(name: str) -> Fault:
    """The server takes bytes and answers nothing; what was connected then never hears again."""

    def fault(context: Context) -> Hit:
        hit = Hit({}, queue=True) if name == "redis" else _all(context)
        proxy = context.rig.proxies[name]
        proxy.cut(all_new=context.random.random() < 0.5)
        time.sleep(context.random.uniform(0.5, 2.0))  # until new connections pass
        proxy.restore()
        return hit

    fault.__doc__ = f"The connections to {name} are dead, without a notice."
    return fault


def refusing(spoil: str, restore: str) -> Fault:
    """Redis answers with errors for a while: after one command, until another."""

    def fault(context: Context) -> Hit:
        context.rig.server("redis")
        with context.rig.redis() as client:
            try:
                for command in spoil.split(";"):
                    client.execute_command(*command.split())
                time.sleep(context.random.uniform(0.5, 2.0))  # the outage itself
            finally:
                client.execute_command(*restore.split())
        return Hit({}, queue=True)

    fault.__doc__ = f"Redis after {spoil}."
    return fault


def unreadable_message(context: Context) -> Hit:
    """Messages of somebody else's in the queue."""
    context.rig.server("redis")
    other = b'{"body": "", "headers": {"task": "other"}, "properties": {"delivery_tag": null}}'
    with context.rig.redis() as client:
        client.rpush("marco", b"5", b"null", b"[]", b"\xff", other, b"x" * 100_000)
    return Hit({}, queue=True)


def hung_child(context: Context) -> Hit:
    """SIGSTOP of a process in the middle of a search, for good: its worker must kill it."""
    job, _, rounds, pid = context.random.choice(_busy(context))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        context.rig.hung.add(pid)
    return Hit({job: rounds})


FAULTS: dict[str, Fault] = {
    "kill_child": kill_child,
    "kill_worker": kill_worker,
    "kill_main": kill_main,
    "kill_scheduler": kill_scheduler,
    "stop_child": stop_child,
    "kill_redis": kill_redis,
    "flush_redis": flush_redis,
    "redis_down": redis_down,
    "kill_postgres": kill_postgres,
    "postgres_down": postgres_down,
    "restart_in_copy": restart_in_copy,
    "full_disk": full_disk,
    "jump_clock": jump_clock,
    "duplicate": duplicate,
    "vanished_postgres": vanished("postgres"),
    "vanished_redis": vanished("redis"),
    "vanished_model_server": vanished("model"),
    "redis_oom": refusing("CONFIG SET maxmemory 1mb", "CONFIG SET maxmemory 0"),
    "redis_readonly": refusing("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    "redis_wrongtype": refusing("DEL marco;SET marco text", "DEL marco"),
    "unreadable_message": unreadable_message,
    "hung_child": hung_child,
    **{f"runtime_{how}": misbehaving(how) for how in MISBEHAVIOURS},
}
