"""Where text comes from. `open_runtime` gives the runtime that the settings name."""

from __future__ import annotations

import os

from marco_search.runtime.base import Runtime
from marco_search.settings import Settings

__all__ = ["open_runtime"]


def open_runtime(settings: Settings) -> Runtime:
    """The embedded engine, or the SGLang server at MARCO_RUNTIME.

    Raises ModelRefused for a model folder that can't be used, RuntimeUnavailable for a
    server that does not answer.
    """
    # A second BLAS thread gains little and costs other processes much. It only counts if
    # numpy is not loaded yet, which is why all imports of it below are late.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if settings.runtime == "embedded":
        from marco_search.runtime.embedded import open_embedded

        return open_embedded(settings)
    from marco_search.runtime.chatml import render_chatml
    from marco_search.runtime.endpoint import EndpointBackend
    from marco_search.runtime.fork_runtime import ForkRuntime

    key = settings.runtime_api_key
    backend = EndpointBackend(
        settings.runtime,
        timeout_s=settings.runtime_timeout_s,
        api_key=key.get_secret_value() if key else None,
    )
    info = backend.describe()
    return ForkRuntime(backend, info, render_chatml, timeout_s=settings.runtime_timeout_s)
