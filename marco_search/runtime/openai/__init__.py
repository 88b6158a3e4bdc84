"""OpenAI-compatible servers as a runtime, through /v1/completions."""

from __future__ import annotations

from marco_search.runtime.base import Runtime
from marco_search.runtime.openai.server import OpenAIServer
from marco_search.runtime.servers import open_servers
from marco_search.settings import Settings

SCHEME = "openai+"


def open_openai(settings: Settings) -> Runtime:
    """A runtime over the servers that MARCO_RUNTIME lists (see `open_servers`)."""
    return open_servers(settings, OpenAIServer, SCHEME)
