"""A model server that speaks SGLang's protocol, misbehaves on demand and counts its tokens.

What it generates depends only on the prefix and the seed, so every tree has one right shape.
The ledger is the suite's witness: what was generated, for which job, and when it was asked.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.integration.runtime.sglang_server import Handler, completion, serving

_TAG = re.compile(r"#(\d+)#")
_HANG_S = 5.0  # longer than the workers wait for an answer
MISBEHAVIOURS = ("500", "429", "hang", "die")


@dataclass(frozen=True, slots=True)
class Generated:
    """One completion. `asked_at` is Unix time in seconds."""

    job: int
    seed: int
    tokens: int
    asked_at: float


class Model:
    """The server's behaviour. `pace_s` is how long a completion takes, at most."""

    def __init__(self, pace_s: float, seed: int) -> None:
        self.pace_s = pace_s
        self.ledger: list[Generated] = []
        self.refused = 0  # requests that were made to fail
        self._random = Random(seed)
        self._lock = threading.Lock()
        self._misbehaviour, self._until = "", 0.0
        self.url = ""

    def misbehave(self, how: str, seconds: float) -> None:
        """Answer most requests so (one of MISBEHAVIOURS) for a while."""
        self._misbehaviour, self._until = how, time.monotonic() + seconds

    def act(self, handler: Handler, body: dict[str, Any]) -> bool:
        """Deal with one request, as `sglang_server.Act`."""
        asked_at = time.time()
        if body["sampling_params"]["max_new_tokens"] == 0:
            return False
        with self._lock:
            pace_s = self.pace_s * self._random.uniform(0.3, 1.0)
            wrong = time.monotonic() < self._until and self._random.random() < 0.7
            self.refused += wrong
        if wrong:
            self._fail(handler)
            return True
        handler.server.released.wait(pace_s)
        answer = completion(body)
        found = _TAG.search(body["text"])
        assert found is not None, "every question of the suite holds its number"
        seed = body["sampling_params"].get("sampling_seed", 0)
        tokens = len(answer["meta_info"]["output_token_logprobs"])
        with self._lock:
            self.ledger.append(Generated(int(found[1]), seed, tokens, asked_at))
        handler.send(answer)
        return True

    def _fail(self, handler: Handler) -> None:
        match self._misbehaviour:
            case "500":
                handler.send({"error": "made to fail"}, 500)
            case "429":
                handler.send({"error": "too many"}, 429, Retry_After="0")
            case "hang":
                handler.server.released.wait(_HANG_S)
                handler.drop()
            case _:  # it dies in the middle of its answer
                handler.raw(200, json.dumps({"text": "half an"}).encode()[:9], length=500)
                handler.drop()


@contextmanager
def model_server(pace_s: float, seed: int) -> Iterator[Model]:
    """A running model server."""
    model = Model(pace_s, seed)

    def prepare(server: Any) -> None:
        server.act = model.act
        server.asked = _Nothing()
        # Clients that were killed are no news here.
        server.handle_error = lambda *_: None

    with serving(prepare=prepare) as server:
        model.url = server.url
        yield model


class _Nothing(list[Any]):
    """Thousands of requests are not kept."""

    def append(self, _: Any) -> None:
        """Drop it."""
