"""Entry point of `marco worker`: Celery's worker in this process, until it is stopped.

SIGTERM, SIGHUP or Ctrl-C: take no more jobs, finish and store the current rounds, release their
jobs, exit. Another worker continues them at once. A round that takes longer than MARCO_STOP_S
is aborted. SIGQUIT does the same in a few seconds; a second one exits at once, and the jobs
continue elsewhere when their leases have expired.
"""

import gc
import logging
import signal
import socket
import warnings
from collections.abc import Callable
from contextlib import closing
from types import FrameType
from typing import Any

from billiard import pool
from celery import signals
from celery.apps import worker as celery_program
from celery.worker import state

from marco_search.engine import profile_of
from marco_search.errors import InvalidSettings, MarcoError
from marco_search.jobs import SearchOptions
from marco_search.metrics import SCHEDULER, WORKER, measured
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Runtime
from marco_search.settings import Settings, worker_refusal
from worker import process, watchdog

log = logging.getLogger(__name__)

_QUIT_S = 3.0  # for rounds to finish after SIGQUIT

# A stopping Celery forgets the message that it has just given to a child, and the child waits
# half a minute for its parent to take the outcome. A message is only a permit, so nothing
# depends on the outcome, and a child waits only this long.
_UNHEARD_S = 1.0


def run(
    settings: Settings,
    *,
    processes: int | None = None,
    name: str = "celery",
    open_runtime: Callable[[Settings], Runtime] = open_runtime,
    silent_s: float = watchdog.SILENT_S,
) -> int:
    """Run jobs until stopped; the exit code. `processes` is how many run at once.

    `name` tells workers on one machine apart: the Celery node is `name@host`. `open_runtime` and
    `silent_s` are for tests and benchmarks, see `process.Process`.
    Raises InvalidSettings, ModelRefused, AddressTaken, DatabaseUnavailable or SchemaMismatch before
    anything is started; Redis and the model server may be down, the worker waits for them. Stopped
    by Ctrl-C, it raises KeyboardInterrupt after shutting down as on SIGTERM.
    """
    if refused := worker_refusal(settings):
        raise InvalidSettings(refused)
    with measured(settings, [WORKER, SCHEDULER], forks=True):
        return _run(process.Process(settings, open_runtime, silent_s), processes, name)


def _run(here: process.Process, processes: int | None, name: str) -> int:
    settings = here.settings
    process.check_database(settings)
    process.use(here)
    _check_runtime(here)
    # Before the fork: its patterns take a while to compile, in every child otherwise.
    import marco_search.kinds.answers.reading  # noqa: F401
    from worker.app import app

    # Celery warns root, and users without a passwd entry, about pickle, which is refused here.
    warnings.filterwarnings("ignore", module=r"celery\.platforms")

    class Worker(app.Worker):  # type: ignore[misc]
        """Celery's, except for the first SIGQUIT, on which Celery would not wait for rounds.

        And except for SIGHUP, on which Celery restarts when its jobs have ended, however long
        that takes.
        """

        def install_platform_tweaks(self, worker: Any) -> None:
            hangup = signal.getsignal(signal.SIGHUP)
            super().install_platform_tweaks(worker)
            ignored = hangup is signal.SIG_IGN  # nohup
            signal.signal(signal.SIGHUP, hangup if ignored else signal.getsignal(signal.SIGTERM))
            _install_quit_handler(here, min(_QUIT_S, settings.stop_s))

    # Read by the children, after the fork.
    pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = round(
        _UNHEARD_S / pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
    )
    # Celery's advice on Ctrl-C does not apply to these workers.
    celery_program.safe_say = lambda *_: None
    worker = Worker(
        app=app,
        hostname=f"{name}@{socket.gethostname()}",
        concurrency=processes or settings.worker_processes,
        loglevel=settings.log_level.upper(),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=not settings.remote_control,
    )
    interrupt = _Interrupt()
    # Otherwise the children's garbage collectors write to all pages shared with this process,
    # and each child gets its own copy.
    gc.collect()
    gc.freeze()
    worker.start()
    if interrupt.seen:
        raise KeyboardInterrupt
    return int(worker.exitcode or 0)


class _Interrupt:
    """Whether Ctrl-C stopped the worker, which Celery reports as an error."""

    def __init__(self) -> None:
        self.seen = False
        signals.worker_shutting_down.connect(self._shutting_down, weak=False)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._before_celery)

    def _shutting_down(self, sig: str, **_: Any) -> None:
        self.seen = self.seen or sig == "SIGINT"

    def _before_celery(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


def _check_runtime(here: process.Process) -> None:
    """Raises if the runtime's settings or the profile for its model are wrong, since every job
    would fail. An unavailable runtime may come back.
    """
    try:
        with closing(here.open_runtime()) as runtime:
            profile_of(SearchOptions(), runtime.info.model)
    except MarcoError as error:
        if not error.retryable:
            raise
        log.warning("runtime unavailable, jobs wait for it: %s", error)


def _install_quit_handler(here: process.Process, within_s: float) -> None:
    """On SIGQUIT: a quick warm shutdown. The second one is Celery's cold shutdown."""
    cold = signal.getsignal(signal.SIGQUIT)

    def quit_soon(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGQUIT, cold)
        here.shutdown.request(within_s)
        state.should_stop = 0

    signal.signal(signal.SIGQUIT, quit_soon)
