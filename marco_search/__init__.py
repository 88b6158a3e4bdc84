"""marco-search: answers jobs by tree search over a language model and keeps every tree.

`from marco_search import solve` is the whole search as a library call, without any service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marco_search.engine import solve

__all__ = ["__version__", "solve"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy: a producer that only submits must not load the engine.
    if name == "solve":
        from marco_search.engine import solve

        return solve
    raise AttributeError(name)
