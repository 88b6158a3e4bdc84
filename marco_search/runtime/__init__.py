"""Runtimes generate text: `open_runtime` opens the one that the settings name.

A new runtime is a module with a class that implements `base.Runtime`, a function that opens it
from the settings, and a line in `RUNTIMES`.
"""

from __future__ import annotations

from collections.abc import Callable

from marco_search import settings as settings_module
from marco_search.errors import InvalidSettings
from marco_search.runtime.base import Runtime
from marco_search.settings import Settings

__all__ = ["RUNTIMES", "open_runtime"]


def _embedded(settings: Settings) -> Runtime:
    from marco_search.runtime.embedded.backend import open_embedded

    return open_embedded(settings)


def _servers(settings: Settings) -> Runtime:
    from marco_search.runtime.servers import open_servers

    return open_servers(settings)


RUNTIMES: dict[str, Callable[[Settings], Runtime]] = {
    "embedded": _embedded,
    "http": _servers,
    "https": _servers,
    "openai+http": _servers,
    "openai+https": _servers,
}
"""Functions that open a runtime, by the scheme of MARCO_RUNTIME, the part before the colon."""


def open_runtime(settings: Settings | None = None) -> Runtime:
    """The runtime that MARCO_RUNTIME names, or `settings` instead of the environment.

    Raises InvalidSettings for an invalid address, ModelRefused for a model that can't be used or
    is not the requested one, RuntimeUnavailable if no server responds.
    """
    settings = settings or settings_module.load()
    scheme = settings.runtime.strip().partition(":")[0].lower()
    if scheme not in RUNTIMES:
        raise InvalidSettings(
            "MARCO_RUNTIME: use embedded, or addresses separated by commas, of SGLang servers, "
            "such as http://127.0.0.1:30000, or of OpenAI-compatible ones, such as "
            "openai+http://127.0.0.1:8000/v1"
        )
    opened = RUNTIMES[scheme](settings)
    if RUNTIMES[scheme] in (_embedded, _servers):
        return opened  # they check what they read
    from marco_search.runtime.checked import CheckedRuntime

    return CheckedRuntime(opened)
