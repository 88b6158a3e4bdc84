"""The in-process engine: a Qwen2-architecture model decoded with NumPy, no server, no torch.

folder -> config, weights, tokenizer -> decoder, cache -> batch -> engine -> backend
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marco_search.runtime.base import Runtime
    from marco_search.settings import Settings


def open_embedded(settings: Settings) -> Runtime:
    """A runtime that decodes in this process: MARCO_MODEL's folder, or the pocket model.

    The decoding thread starts with the first branch. While it decodes, BLAS has one thread in
    the whole process; then it has as many as before. Raises ModelRefused when the folder can't
    be used.
    """
    # Late: numpy, sglang and tokenizers take a while to load.
    from marco_search.pocket import MODEL_DIR
    from marco_search.runtime.embedded.backend import EmbeddedBackend, load_model
    from marco_search.runtime.program import ForkRuntime

    model = load_model(settings.model or MODEL_DIR)
    backend = EmbeddedBackend(
        model,
        max_rows=settings.embedded_rows,
        cache_bytes=settings.embedded_cache_mib << 20,
    )
    return ForkRuntime(
        backend, model.info, model.template.render, timeout_s=settings.runtime_timeout_s
    )
