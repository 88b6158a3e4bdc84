"""Where text comes from. `open_runtime` gives the runtime that the settings name."""

from __future__ import annotations

import os

from marco_search.runtime.base import Runtime
from marco_search.settings import Settings

__all__ = ["open_runtime"]


def open_runtime(settings: Settings) -> Runtime:
    """The embedded engine, or the SGLang servers that MARCO_RUNTIME lists.

    Raises ModelRefused for a model that can't be used or is not the one asked for,
    RuntimeUnavailable if no server answers, InvalidSettings for an address that is not one.
    """
    # A second BLAS thread gains little and costs other processes much. It only counts if
    # numpy is not loaded yet, which is why all imports of it below are late.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if settings.runtime == "embedded":
        from marco_search.runtime.embedded import open_embedded

        return open_embedded(settings)
    from marco_search.runtime.endpoint import open_endpoint

    return open_endpoint(settings)
