"""Unit tests: no service, no socket, and nothing that depends on how fast the machine is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from pytest_socket import disable_socket, enable_socket

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture(autouse=True, scope="module")
def _no_network() -> Iterator[None]:
    # Event loops talk to themselves through a pair of Unix sockets.
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()
