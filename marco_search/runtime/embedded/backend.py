"""SGLang's frontend language on the embedded engine: a `BaseBackend` without a server.

`generate` is called from many threads and never raises: a failure is an error value
(`program.error_value`), because an exception inside a fork's thread makes the frontend drop the
child or wait for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sglang.lang.backend.base_backend import BaseBackend

import marco_search
from marco_search import models
from marco_search.errors import (
    BranchFailed,
    ModelRefused,
    PromptTooLong,
    RuntimeFailure,
    RuntimeUnavailable,
)
from marco_search.runtime.base import Render, Runtime, RuntimeInfo
from marco_search.runtime.chat import read_chat_template
from marco_search.runtime.embedded.batch import Batch, GenerationRequest, Row
from marco_search.runtime.embedded.cache import RadixCache
from marco_search.runtime.embedded.checkpoint import ModelConfig, read_config, read_weights
from marco_search.runtime.embedded.decoder import Decoder, Part
from marco_search.runtime.embedded.engine import Engine
from marco_search.runtime.embedded.files import fingerprint, open_files, training_of
from marco_search.runtime.embedded.linear import Team, blas_name, one_blas_thread
from marco_search.runtime.embedded.tokenizer import TokenIds, Tokenizer
from marco_search.runtime.program import ForkRuntime, error_value, params_of
from marco_search.settings import Settings
from marco_search.text import one_line


def open_embedded(settings: Settings) -> Runtime:
    """A runtime that decodes in this process: MARCO_MODEL, or the default.

    The decoding thread starts with the first branch. While it decodes, BLAS has one thread in
    the whole process; then it has as many as before. Raises ModelRefused when it can't
    be used.
    """
    model = load_model(models.chosen(settings), settings.embedded_threads)
    backend = EmbeddedBackend(
        model,
        max_rows=settings.embedded_rows,
        cache_bytes=settings.embedded_cache_mib << 20,
    )
    return ForkRuntime(backend, model.info, model.render, timeout_s=settings.runtime_timeout_s)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, ready to decode. The decoder serves one engine."""

    config: ModelConfig
    tokenizer: Tokenizer
    render: Render | None  #: None: it has no chat template
    decoder: Decoder
    info: RuntimeInfo


def load_model(path: Path, threads: int = 1) -> LoadedModel:
    """Load a Hugging Face folder or a GGUF file of a supported architecture (checkpoint.py).

    `threads` decode a large model together; the bits are the same with any number of them.
    Raises ModelRefused, which says what was found and what is accepted.
    """
    try:
        return _load(path, threads)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # What no check foresaw: a value of another type or size in any of the files.
        reason = one_line(f"{type(error).__name__}: {error}")[:200]
        raise ModelRefused(f"{path}: the model's files are malformed: {reason}") from error


def _load(path: Path, threads: int) -> LoadedModel:
    files = open_files(path)
    config = read_config(files)
    tokenizer = Tokenizer(files, config.vocab)
    if tokenizer.end_of_turn is not None:
        config = replace(config, eos_ids=tuple(sorted({*config.eos_ids, tokenizer.end_of_turn})))
    with one_blas_thread():
        decoder = Decoder(config, read_weights(files, config, Team(threads)))
        arithmetic = _arithmetic(decoder)
    info = RuntimeInfo(
        name="embedded",
        version=f"{marco_search.__version__}+{arithmetic}",
        model=files.name,
        revision=fingerprint(files),
        context_tokens=config.context_tokens,
        exact=True,
        training=training_of(files.path),
    )
    return LoadedModel(config, tokenizer, read_chat_template(files), decoder, info)


def _arithmetic(decoder: Decoder) -> str:
    """numpy's version, its BLAS, and a short hash of what these compute for a fixed input.

    Processors sum in different orders, so the last bits differ between kinds of them. Where
    this is the same, a replay gives the same bits.
    """
    ids = np.arange(8) % decoder.config.vocab
    decoder.slots.resize((len(ids), 1))
    logits = decoder.prefill([Part(i, 0, ids[: i + 1]) for i in range(len(ids))])
    decoder.slots.resize((0, 0))
    digest = hashlib.sha256(logits.tobytes()).hexdigest()[:8]
    return f"numpy{np.__version__}.{blas_name()}.{digest}"


class EmbeddedBackend(BaseBackend):  # type: ignore[misc]  # sglang has no types
    """Decodes in this process. `shutdown` ends its thread; it can't be used after that."""

    def __init__(self, model: LoadedModel, *, max_rows: int, cache_bytes: int) -> None:
        super().__init__()
        self.model = model
        cache = RadixCache(cache_bytes)
        self.engine = Engine(Batch(model.decoder, cache, model.tokenizer, max_rows))

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        """Continue the executor's text: (text, meta_info), or an error value."""
        began = time.perf_counter()
        try:
            request = self._request(s, sampling_params)
            text, meta = self._answer(request, self._run(request, s))
        except RuntimeFailure as error:
            return error_value(type(error).__name__, str(error))
        except Exception as error:  # see the module's text
            return error_value("BranchFailed", f"{type(error).__name__}: {error}")
        return text, meta | {"e2e_latency": time.perf_counter() - began}

    def commit_lazy_operations(self, s: Any) -> None:
        """Prefill the text into the prefix cache. A failure shows in what comes after."""
        ids = self._prefix_ids(s)
        if 0 < len(ids) < self.model.config.context_tokens:
            with contextlib.suppress(RuntimeFailure):
                self._run(GenerationRequest(ids=ids, max_new_tokens=0), s)

    def shutdown(self) -> None:
        """End the decoding thread; what is in flight fails."""
        self.engine.close()

    def abort(self) -> None:
        """Fail what is in flight now; what comes later is served."""
        self.engine.abort()

    def _run(self, request: GenerationRequest, s: Any) -> Row:
        seconds = max(0.0, params_of(s).deadline - time.monotonic())
        row = self.engine.submit(request)
        try:
            row.result(seconds)
        except TimeoutError:
            row.cancel()
            late = f"no answer from the embedded engine in {seconds:.3g} s"
            raise RuntimeUnavailable(late) from None
        return row

    def _request(self, s: Any, params: Any) -> GenerationRequest:
        """The request behind a `gen`: executor `s` and its sampling parameters."""
        ids, most = self._prefix_ids(s), self.model.config.context_tokens
        if len(ids) == 0:
            raise BranchFailed("the prompt is empty")
        if len(ids) >= most:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens; the model takes {most} in all")
        return GenerationRequest(
            ids=ids,
            max_new_tokens=min(params.max_new_tokens, most - len(ids)),
            temperature=params.temperature,
            top_p=params.top_p,
            seed=params_of(s).seed,
            stops=tuple(params.stop or ()),
            stop_ids=self.model.config.eos_ids,
        )

    def _prefix_ids(self, s: Any) -> TokenIds:
        """The executor's text in tokens: those that the trail holds, and the others made here."""
        encode = self.model.tokenizer.encode
        ids = [
            encode(part, bool(at)) if isinstance(part, str) else np.array(part, np.int32)
            for at, part in enumerate(params_of(s).parts)
        ]
        return np.concatenate(ids)

    def _answer(self, request: GenerationRequest, found: Row) -> tuple[str, dict[str, Any]]:
        """As SGLang answers: the text without the stop text, and its `meta_info`.

        Log-probs are the model's own, at temperature 1. A token's text is what it completes: ""
        inside a character and for the end of the sequence.
        """
        tokenizer = self.model.tokenizer
        texts = tokenizer.pieces(found.tokens)
        text = "".join(texts)
        reason: dict[str, Any] = {"type": "stop", "matched": found.matched}
        if found.matched is None:
            reason = {"type": "length", "length": request.max_new_tokens}
        elif isinstance(found.matched, str):
            text = text.partition(found.matched)[0]
        chosen = zip(found.logprobs, found.tokens, texts, strict=True)
        tops = zip(found.top_logprobs, found.top_ids, strict=True)
        return text, {
            "finish_reason": reason,
            "prompt_tokens": found.prompt_tokens,
            "cached_tokens": found.cached_tokens,
            "completion_tokens": len(found.tokens),
            "output_token_logprobs": [list(entry) for entry in chosen],
            "output_top_logprobs": [
                [[p, i, tokenizer.alone(i)] for p, i in zip(logprobs, ids, strict=True)]
                for logprobs, ids in tops
            ],
        }
