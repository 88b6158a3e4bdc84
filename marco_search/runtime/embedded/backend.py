"""SGLang's frontend language on the embedded engine: a `BaseBackend` without a server.

Any `@sgl.function` runs on it: `gen`, `select`, `fork`, streaming. `generate` is called from
many threads and never raises: a failure is an error value (params.py), because an exception
inside a fork's thread makes the frontend drop the child or wait for ever.
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.choices import ChoicesDecision, token_length_normalized

from marco_search.errors import RuntimeFailure
from marco_search.runtime.embedded.asking import number, prefix_ids, request_of
from marco_search.runtime.embedded.batch import Batch
from marco_search.runtime.embedded.engine import Engine
from marco_search.runtime.embedded.meta import Meta, completion_text, meta_info
from marco_search.runtime.embedded.model import LoadedModel
from marco_search.runtime.embedded.radix import RadixCache
from marco_search.runtime.embedded.requests import Completion, GenerationRequest, Ticket
from marco_search.runtime.embedded.selecting import score_choices
from marco_search.runtime.embedded.streaming import TextStream
from marco_search.runtime.embedded.tokenizer import TokenIds
from marco_search.runtime.params import error_value, params_of


class EmbeddedBackend(BaseBackend):  # type: ignore[misc]  # sglang has no types
    """Decodes in this process. `shutdown` ends its thread; it can't be used after that."""

    def __init__(
        self, model: LoadedModel, *, max_rows: int, cache_bytes: int, timeout_s: float
    ) -> None:
        super().__init__()
        self._model = model
        self._timeout_s = timeout_s
        cache = RadixCache(cache_bytes)
        batch = Batch(model.decoder, cache, model.tokenizer, model.config.eos_ids, max_rows)
        self.engine = Engine(batch)

    def get_model_name(self) -> str:
        """The folder's name."""
        return self._model.info.model

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, Meta]:
        """Continue the executor's text: (text, meta_info), or an error value."""
        began = time.perf_counter()
        try:
            request = request_of(self._model, s, sampling_params)
            outcome = self.run(request, self._seconds_left(s))
            text = completion_text(self._model.tokenizer, outcome)
            return text, self._meta(s, sampling_params, request, outcome, began)
        except RuntimeFailure as error:
            return error_value(type(error).__name__, str(error))
        except Exception as error:  # see the module's text
            return error_value("BranchFailed", f"{type(error).__name__}: {error}")

    def generate_stream(self, s: Any, sampling_params: Any) -> Iterator[tuple[str, Meta]]:
        """Like `generate`, in pieces; the last has the full meta_info, or is an error value."""
        began = time.perf_counter()
        try:
            request = request_of(self._model, s, sampling_params)
            arrivals: queue.SimpleQueue[int | None] = queue.SimpleQueue()
            ticket = self.engine.submit(Ticket(request, arrivals))
            stream = TextStream(self._model.tokenizer, request.stops)
            seconds = self._seconds_left(s)
            deadline = time.monotonic() + seconds
            while True:
                token = arrivals.get(timeout=max(0.0, deadline - time.monotonic()))
                if token is None:
                    break
                piece = stream.feed(token)
                if piece:
                    yield piece, {"finish_reason": None, "completion_tokens": stream.tokens}
            outcome = ticket.wait(0.0)
            if isinstance(outcome, RuntimeFailure):
                raise outcome
            meta = self._meta(s, sampling_params, request, outcome, began)
            yield stream.rest(completion_text(self._model.tokenizer, outcome)), meta
        except RuntimeFailure as error:
            yield error_value(type(error).__name__, str(error))
        except queue.Empty:
            ticket.cancelled = True
            message = f"no answer from the embedded engine in {seconds:.3g} s"
            yield error_value("BranchFailed", message)
        except Exception as error:
            yield error_value("BranchFailed", f"{type(error).__name__}: {error}")

    def select(
        self,
        s: Any,
        choices: Sequence[str],
        temperature: float,
        choices_method: Any = token_length_normalized,
    ) -> ChoicesDecision:
        """The most probable choice, by `choices_method`. A failure decides for ""."""
        try:
            return score_choices(self, s.text_, list(choices), choices_method)
        except Exception as error:
            _, meta = error_value(type(error).__name__, str(error))
            return ChoicesDecision(decision="", meta_info=meta)

    def commit_lazy_operations(self, s: Any) -> None:
        """Prefill the text into the prefix cache. A failure shows in what comes after."""
        self._prefill(prefix_ids(self._model.tokenizer, s), self._seconds_left(s))

    def cache_prefix(self, prefix_str: str) -> None:
        """Prefill `prefix_str` into the prefix cache."""
        self._prefill(self.encode(prefix_str), self._timeout_s)

    def flush_cache(self) -> None:
        """Forget all cached prefixes."""
        self.engine.flush_cache()

    def shutdown(self) -> None:
        """End the decoding thread; what is in flight fails."""
        self.engine.close()

    def abort(self) -> None:
        """Fail what is in flight now; what comes later is served."""
        self.engine.abort()

    def encode(self, text: str) -> TokenIds:
        """The token ids of `text`."""
        return self._model.tokenizer.encode(text)

    def run(self, request: GenerationRequest, seconds: float | None = None) -> Completion:
        """Run one request, within `seconds` or the backend's own limit. Raises RuntimeFailure."""
        limit = self._timeout_s if seconds is None else seconds
        outcome = self.engine.submit(Ticket(request)).wait(limit)
        if isinstance(outcome, RuntimeFailure):
            raise outcome
        return outcome

    def _seconds_left(self, s: Any) -> float:
        own = params_of(s)
        left = own.deadline - time.monotonic() if own else self._timeout_s
        return max(0.0, min(left, self._timeout_s))

    def _prefill(self, ids: TokenIds, seconds: float) -> None:
        if 0 < len(ids) < self._model.config.context_tokens:
            ticket = Ticket(GenerationRequest(ids=ids, max_new_tokens=0))
            self.engine.submit(ticket).wait(seconds)

    def _meta(
        self, s: Any, params: Any, request: GenerationRequest, outcome: Completion, began: float
    ) -> Meta:
        own = params_of(s)
        return meta_info(
            self._model.tokenizer,
            outcome,
            rid=own.rid if own else uuid.uuid4().hex,
            max_new_tokens=request.max_new_tokens,
            seconds=time.perf_counter() - began,
            logprobs=params.return_logprob is True,
            top=number(params.top_logprobs_num) or 0,
            with_text=params.return_text_in_logprobs is True,
            prompt=request.ids[request.score_from - 1 :].tolist() if request.score_from else (),
        )
