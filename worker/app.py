"""The Celery application of the worker: `celery -A worker.app ...` for Celery's own tools."""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import Celery, signals

from marco_search.broker import celery_config
from marco_search.errors import SchemaMismatch
from marco_search.locations import redis_url
from worker import consumer, logs, process, stopping
from worker.sweep import Sweeper
from worker.watchdog import SILENT_S, Watchdog


def _config() -> dict[str, Any]:
    settings = process.settings()
    return celery_config(redis_url(settings), settings.queue) | {
        "worker_concurrency": settings.worker_processes,
        # A search is minutes of work. A process takes one message, acknowledges it when the
        # job has ended, and none lies in a process that is busy.
        "worker_pool": "prefork",
        "worker_consumer": "worker.consumer:Consumer",
        "worker_prefetch_multiplier": 1,
        "task_acks_late": True,
        # Of a child that was killed: its permit goes to another job; the sweep brings one for
        # its own when the lease has run out.
        "task_reject_on_worker_lost": True,
        # The first makes the child give its job back (worker.stopping), the second kills it.
        "task_soft_time_limit": settings.attempt_s,
        "task_time_limit": settings.attempt_s and settings.attempt_s + settings.stop_s + 5,
        # A lost connection to Redis is no reason to stop a search: Postgres has its rounds.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # What Redis answers with an error is tried again as well.
        "broker_channel_error_retry": True,
        # Whoever reaches Redis could stop every worker.
        "worker_enable_remote_control": settings.remote_control,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


consumer.install()
app = Celery("marco", include=["worker.tasks"])
# Read when first needed, so that this module can be imported without any service.
app.add_defaults(_config)

_sweepers: list[Sweeper] = []


def _setup_logging(**_: Any) -> None:
    logs.set_up(process.settings().log_level)


def _start_sweeping(**_: Any) -> None:
    if process.settings().worker_scheduler:
        sweeper = Sweeper(process.sweep, _leave)
        _sweepers.append(sweeper)
        sweeper.start()


def _leave(_: SchemaMismatch) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _start_watching(sender: Any, **_: Any) -> None:
    pool = sender.pool  # Celery's, around billiard's

    def children() -> list[int]:
        return [child.pid for child in getattr(pool._pool, "_pool", ()) if child.pid]

    Watchdog(children, process.settings().lease_s + SILENT_S).start()


def _tell_children(**_: Any) -> None:
    stopping.tell(process.settings().stop_s)


def _stop_sweeping(**_: Any) -> None:
    while _sweepers:
        _sweepers.pop().stop()


def _close_process(**_: Any) -> None:
    process.close()


signals.setup_logging.connect(_setup_logging)
signals.worker_ready.connect(_start_sweeping)
signals.worker_ready.connect(_start_watching)
signals.worker_shutting_down.connect(_tell_children)
signals.worker_shutdown.connect(_stop_sweeping)
signals.worker_process_shutdown.connect(_close_process)
