"""The Celery application of the worker, and its one task: `celery -A worker.app ...`."""

import logging
import os
import signal
from threading import Thread
from typing import Any

from celery import Celery, signals

from marco_search import logs
from marco_search.broker import TASK, celery_config
from marco_search.errors import SchemaMismatch
from marco_search.locations import redis_url
from worker import consumer, process, watchdog
from worker.scheduler import STOP_S, Scheduler

log = logging.getLogger(__name__)


def _config() -> dict[str, Any]:
    settings = process.current().settings
    return celery_config(redis_url(settings), settings.queue) | {
        "worker_concurrency": settings.worker_processes,
        # A search takes minutes. A process takes one message and acknowledges it when the
        # job has ended; no message waits in a busy process.
        "worker_pool": "prefork",
        "worker_consumer": "worker.consumer:Consumer",
        "worker_prefetch_multiplier": 1,
        "task_acks_late": True,
        # The message of a killed child serves another job; the scheduler publishes one for
        # the child's own job when the lease has expired.
        "task_reject_on_worker_lost": True,
        # The first makes the child release its job (worker.shutdown), the second kills it.
        "task_soft_time_limit": settings.attempt_s,
        "task_time_limit": settings.attempt_s and settings.attempt_s + settings.stop_s + 5,
        # A lost connection to Redis does not stop a search: its rounds go to Postgres.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Error replies of Redis are retried as well.
        "broker_channel_error_retry": True,
        # Anyone with access to Redis could stop every worker.
        "worker_enable_remote_control": settings.remote_control,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


consumer.install()
app = Celery("marco")
# Read when first needed, so that this module can be imported without any service.
app.add_defaults(_config)


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Run the next job. `job_id` only says which one the message was published for."""
    del job_id
    here = process.current()
    with here.shutdown.deferred_signals(here.settings.stop_s), watchdog.watched():
        try:
            here.runner.run_next()
        except SchemaMismatch as error:
            log.error("this worker takes no more jobs: %s", error)
            os.kill(os.getppid(), signal.SIGTERM)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(**_: Any) -> None:
    logs.set_up(process.current().settings)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _start_threads(sender: Any, **_: Any) -> None:
    here, pool = process.current(), sender.pool  # Celery's, around billiard's

    def children() -> list[int]:
        return [child.pid for child in getattr(pool._pool, "_pool", ()) if child.pid]

    watchdog.start(children, here.settings.lease_s + here.silent_s, here.shutdown)
    if here.settings.worker_scheduler:
        _start_scheduler(Scheduler(here.settings, process.this_worker("scheduler ")))


def _start_scheduler(scheduler: Scheduler) -> None:
    """Run it in a thread that ends with this worker; one that hangs is abandoned."""

    def run() -> None:
        try:
            scheduler.run()
        except SchemaMismatch as error:
            log.error("this worker stops: %s", error)
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(**_: Any) -> None:
        scheduler.request_stop()
        thread.join(STOP_S)

    thread = Thread(target=run, name="marco-scheduler", daemon=True)
    thread.start()
    signals.worker_shutdown.connect(stop, weak=False)


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _request_shutdown(**_: Any) -> None:
    here = process.current()
    here.shutdown.request(here.settings.stop_s)


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _outlast_terminal(**_: Any) -> None:
    # A closing terminal signals every process; the main one decides what to do.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _close_process(**_: Any) -> None:
    process.current().close()
