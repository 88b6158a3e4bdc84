"""Where text comes from. `open_runtime` gives the runtime that the settings name."""

from __future__ import annotations

from marco_search.runtime.base import Runtime
from marco_search.settings import Settings

__all__ = ["open_runtime"]


def open_runtime(settings: Settings) -> Runtime:
    """The embedded engine, or the SGLang servers that MARCO_RUNTIME lists.

    Raises ModelRefused for a model that can't be used or is not the one asked for,
    RuntimeUnavailable if no server answers, InvalidSettings for an address that is not one.
    """
    if settings.runtime == "embedded":
        from marco_search.runtime.embedded import open_embedded

        return open_embedded(settings)
    from marco_search.runtime.sglang import open_endpoint

    return open_endpoint(settings)
