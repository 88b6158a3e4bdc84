"""Why jobs that are waited for do not go on."""

import logging
import time
from collections.abc import Callable, Mapping

from marco_search.broker import parse_address, present
from marco_search.errors import MarcoError
from marco_search.locations import redis_url
from marco_search.settings import Settings
from marco_search.store.reads.queries import Unfinished

log = logging.getLogger(__name__)

_EVERY_S = 1.5
_ANSWER_S = 2.0


def reasons(waiting: Unfinished, settings: Settings) -> dict[str, str]:
    """A sentence by each reason why these jobs do not go on: "paused", "no_model", "no_worker"."""
    found = {}
    if waiting.pause:
        found["paused"] = (
            f"paused: {waiting.pause:,} queued; `marco pause --list` says what is paused, "
            "`marco resume` resumes it"
        )
    if waiting.model:
        found["no_model"] = (
            f"{waiting.model:,} begun on a model that no worker has: `marco status` says which"
        )
    if waiting.worker and workers(settings) == []:
        found["no_worker"] = "no worker answers: run `marco worker`"
    return found


def workers(settings: Settings) -> list[str] | None:
    """The workers that announced themselves lately; None: not known, a reader may have no Redis."""
    from redis.exceptions import RedisError

    try:
        address = parse_address(redis_url(settings))
        options = {"socket_timeout": _ANSWER_S, "socket_connect_timeout": _ANSWER_S, "retry": None}
        with address.client(**options) as client:
            return present(client, settings.queue)
    except (MarcoError, RedisError):
        return None


class Watch:
    """Logs each reason once as a warning when two looks in a row have found it.

    One look is not enough: a worker may be starting, or Redis.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._look_at = clock() + _EVERY_S
        self._seen: Mapping[str, str] = {}
        self._said: set[str] = set()

    def look(self, find: Callable[[], Mapping[str, str]]) -> None:
        """Find the reasons why what is waited for does not go on, if it is time to."""
        began = self._clock()
        if began < self._look_at:
            return
        found = find()
        for reason, sentence in found.items():
            if reason in self._seen and reason not in self._said:
                self._said.add(reason)
                log.warning("%s", sentence)
        self._seen = found
        now = self._clock()
        self._look_at = now + max(_EVERY_S, 3 * (now - began))
