"""TLS: a server's certificate is checked unless one says otherwise."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from marco_search.errors import InvalidSettings, RuntimeUnavailable
from marco_search.search.branches import Finish
from tests.integration.runtime.sglang_server import Server, expansion, runtime, serving
from tests.tls import make_certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and the certificate that it signed for 127.0.0.1."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def url(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))

    def wrap(server: Server) -> None:
        server.socket = context.wrap_socket(server.socket, server_side=True)

    with serving(prepare=wrap) as server:
        yield server.url.replace("http://", "https://")


def test_an_untrusted_certificate_is_refused(url: str) -> None:
    with pytest.raises(RuntimeUnavailable, match="MARCO_RUNTIME_CA"), runtime(url):
        pass


def test_a_named_certificate_is_trusted(url: str, certificate: Path) -> None:
    with runtime(url, MARCO_RUNTIME_CA=certificate) as opened:
        assert [b.finish for b in opened.branch([expansion(2)])] == [Finish.STOP] * 2


def test_the_check_can_be_left_out(url: str) -> None:
    with runtime(url, MARCO_RUNTIME_VERIFY_TLS="false") as opened:
        assert [b.finish for b in opened.branch([expansion(2)])] == [Finish.STOP] * 2


def test_an_invalid_certificate_file_is_refused(url: str, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    refused = pytest.raises(InvalidSettings, match="MARCO_RUNTIME_CA")
    with refused, runtime(url, MARCO_RUNTIME_CA=file):
        pass
