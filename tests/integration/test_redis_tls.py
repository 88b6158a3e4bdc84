"""rediss://: whoever connects asks for a certificate that somebody vouches for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from marco_search.broker import Publisher
from marco_search.doctor import redis as redis_finding
from marco_search.errors import BrokerUnavailable
from marco_search.settings import Settings
from producer import Producer
from tests.integration.test_vanished import PATIENCE_S, worker
from tests.integration.toys import question, wait_until
from tests.tls import make_certificate, tls_front


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For this machine, and for another one."""
    mine, other = tmp_path_factory.mktemp("mine"), tmp_path_factory.mktemp("other")
    return make_certificate(mine), make_certificate(other, "DNS:elsewhere.example")


@pytest.fixture
def tls_url(redis_url: str, certificates: tuple[Path, Path]) -> Iterator[str]:
    with tls_front(certificates[0], *_place(redis_url)) as port:
        yield _moved(redis_url, port)


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 6379)


def _moved(url: str, port: int) -> str:
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return f"rediss://{login}@127.0.0.1:{port}{parts.path}"


def _length(url: str) -> int:
    with closing(Publisher(url, "marco")) as publisher:
        return publisher.length()


def test_an_untrusted_certificate_is_refused_by_all(
    tls_url: str, database_url: str, tmp_path: Path
) -> None:
    with pytest.raises(BrokerUnavailable, match="certificate"):
        _length(tls_url)
    settings = Settings().model_copy(update={"redis_url": SecretStr(tls_url)})
    finding = redis_finding(settings)
    assert not finding.ok and "certificate" in finding.detail
    log = tmp_path / "worker"
    with worker(log, (database_url, tls_url)):
        wait_until(lambda: "certificate" in log.read_text(), "the worker says so", PATIENCE_S)
    assert str(urlsplit(tls_url).password) not in log.read_text()


def test_a_named_certificate_is_trusted_by_all(
    tls_url: str, database_url: str, certificates: tuple[Path, Path], tmp_path: Path
) -> None:
    url = f"{tls_url}?ssl_ca_certs={certificates[0]}"
    assert redis_finding(Settings().model_copy(update={"redis_url": SecretStr(url)})).ok
    with Producer(database_url, url) as producer, worker(tmp_path / "worker", (database_url, url)):
        job = producer.submit(question())
        assert producer.wait(job, timeout_s=PATIENCE_S).state == "succeeded"
        with closing(Publisher(url, "marco")) as publisher:
            assert publisher.workers()


def test_a_certificate_for_another_name_is_refused_unless_the_check_is_left_out(
    redis_url: str, certificates: tuple[Path, Path]
) -> None:
    with tls_front(certificates[1], *_place(redis_url)) as port:
        url = _moved(redis_url, port)
        with pytest.raises(BrokerUnavailable, match="certificate"):
            _length(f"{url}?ssl_ca_certs={certificates[1]}")
        assert _length(f"{url}?ssl_cert_reqs=none") == 0
