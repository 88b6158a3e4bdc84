"""llama-cpp-python's server with SmolLM2, started once. Only when these tests are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from marco_search.errors import LocalServiceFailed
from tests.integration.conftest import (  # noqa: F401
    database_url,
    redis_url,
    services,
    services_home,
    template_database,
)
from tests.openai import llama_cpp


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Address of the server, for MARCO_RUNTIME."""
    try:
        with llama_cpp.serving(Path(".marco/openai-test.log")) as url:
            yield url
    except LocalServiceFailed as error:
        pytest.skip(str(error))
