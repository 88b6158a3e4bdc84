"""The real SGLang server with the pocket model, started once. Only when these tests are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from marco_search.errors import LocalServiceFailed
from marco_search.pocket import MODEL_DIR
from marco_search.runtime.base import Runtime
from ops.bench.runtime import open_engine
from tests.integration.conftest import (  # noqa: F401
    database_url,
    redis_url,
    services,
    services_home,
    template_database,
)
from tests.sglang.sglang_cpu import serving


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of the server."""
    try:
        with serving(MODEL_DIR, Path(".marco/sglang-test.log")) as url:
            yield url
    except LocalServiceFailed as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def both(server: str) -> Iterator[tuple[Runtime, Runtime]]:
    """(the embedded engine, the server) as runtimes."""
    embedded, real = (
        open_engine(address, MARCO_MODEL=MODEL_DIR) for address in ("embedded", server)
    )
    yield embedded, real
    embedded.close()
    real.close()
