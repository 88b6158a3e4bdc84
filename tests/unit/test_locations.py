"""Where Postgres and Redis are taken from, and the errors when there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from marco_search import broker, locations
from marco_search import settings as settings_module
from marco_search.broker import Publisher
from marco_search.errors import (
    BrokerUnavailable,
    DatabaseUnavailable,
    InvalidSettings,
    LocalServiceFailed,
)
from marco_search.local import URLS_NAME, ServiceUrls, read_urls, write_urls
from marco_search.settings import Settings, without_password


def _settings(home: Path, database: str | None = None, broker: str | None = None) -> Settings:
    return Settings().model_copy(
        update={
            "home": home,
            "database_url": SecretStr(database) if database else None,
            "redis_url": SecretStr(broker) if broker else None,
        }
    )


@contextmanager
def _running(home: Path) -> Iterator[ServiceUrls]:
    urls = ServiceUrls(
        database_url="postgresql://marco:secret-p@127.0.0.1:5555/marco",
        redis_url="redis://:secret-r@127.0.0.1:6666/0",
    )
    with write_urls(home, urls):
        yield urls


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_common_form_of_a_postgres_url_is_understood(tmp_path: Path, scheme: str) -> None:
    given = f"{scheme}://u:p%40q@db.example:5433/name?sslmode=require"
    plain = locations.database_url(_settings(tmp_path, database=given))
    assert plain == "postgresql://u:p%40q@db.example:5433/name?sslmode=require"


@pytest.mark.parametrize("given", ["mysql://u:hush@db/name", "hush", "redis://:hush@host/0"])
def test_a_url_of_another_kind_is_refused_without_showing_it(tmp_path: Path, given: str) -> None:
    with pytest.raises(InvalidSettings, match="DATABASE_URL: must look like") as refused:
        locations.database_url(_settings(tmp_path, database=given))
    assert "hush" not in str(refused.value)


def test_redis_with_and_without_tls(tmp_path: Path) -> None:
    for given in ("redis://:p@host:1/2", "rediss://:p@host:1/2"):
        assert locations.redis_url(_settings(tmp_path, broker=given)) == given
    with pytest.raises(InvalidSettings, match="REDIS_URL"):
        locations.redis_url(_settings(tmp_path, broker="http://host"))


def test_the_embedded_services_are_used_when_they_run(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    with _running(tmp_path) as urls:
        assert locations.database_url(settings) == urls.database_url
        assert locations.redis_url(settings) == urls.redis_url
        real = _settings(tmp_path, database="postgresql://db/name")
        assert locations.database_url(real) == "postgresql://db/name", "the environment comes first"
    # The supervisor has gone, however it ended; its file is still there.
    with pytest.raises(DatabaseUnavailable):
        locations.database_url(settings)


def test_when_nothing_runs_it_says_what_to_do(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    with pytest.raises(DatabaseUnavailable, match="run `marco up`, or set DATABASE_URL"):
        locations.database_url(settings)
    with pytest.raises(BrokerUnavailable, match="run `marco up`, or set REDIS_URL"):
        locations.redis_url(settings)


def test_a_state_that_is_not_readable_counts_as_none(tmp_path: Path) -> None:
    with _running(tmp_path) as urls:
        assert read_urls(tmp_path) == urls
        for text in ("", "{}", "[]", "null", '{"supervisor": 3}'):
            (tmp_path / URLS_NAME).write_text(text)
            assert read_urls(tmp_path) is None
            with pytest.raises(DatabaseUnavailable):
                locations.database_url(_settings(tmp_path))


def test_another_users_state_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(LocalServiceFailed, match="another user"):
        read_urls(tmp_path)


def test_passwords_do_not_show_in_what_may_be_logged(tmp_path: Path) -> None:
    with _running(tmp_path) as urls:
        assert "secret" not in repr(urls)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hush@h/db",
        "postgresql://u:hu/hush@h:5432/db",
        "postgresql://u:s3%hush@h/db",
        "postgresql://h/db?user=u&password=hush",
        "redis://:hush@h:99999/0",
        "redis://:hu?hush@h/0",
        "redis://h/0?password=hush",
    ],
)
def test_no_password_is_shown_even_of_a_url_that_is_no_good(url: str) -> None:
    shown = without_password(url)
    assert "hush" not in shown and "***" in shown


@pytest.mark.parametrize(
    "url",
    [
        "foo",
        "http://h",
        "redis://",
        "redis://:hush@h:99999/0",
        "redis://[::1/hush",
        # Not escaped: what follows is no part of the password any more.
        "redis://h:hu/sh",
        "redis://:hush/1@h:6379/0",
        "redis://:hush#1@h/0",
        "redis://:1#hush@h/0",
        "redis://:1/hush@h/0",
        "redis://:1?hush@h/0",
        "redis://user/hush@h/0",
        "redis://:hush@a..b/0",
        f"redis://:hush@{'h' * 64}/0",
        "redis://:hush@h%00/0",
        "redis://:hush@h:0/0",
        "redis://u:hush\udcff@h/0",
        "redis://h/jobs",
        "redis://h/-1",
        "redis://h?health_check_interval=30",
        "redis://h/0?password=hush",
        "redis://h/0?ssl_cert_reqs=none",
        "rediss://h/0?ssl_cert_reqs=maybe",
        "rediss://h/0?ssl_check_hostname=perhaps",
    ],
)
def test_a_redis_url_that_is_no_good_is_refused_without_its_password(
    tmp_path: Path, url: str
) -> None:
    for refuse in (
        lambda: Publisher(url, "marco"),
        lambda: locations.redis_url(_settings(tmp_path, broker=url)),
    ):
        with pytest.raises(InvalidSettings, match="REDIS_URL") as refused:
            refuse()
        assert "hush" not in str(refused.value)


def test_what_a_redis_url_says() -> None:
    plain = broker.parse_address("redis://h")
    assert (plain.url, plain.tls) == ("redis://h:6379/0", None)
    odd = broker.parse_address("redis://us%40er:p%2Fw%23@[::1]:7/3")
    where = odd.client().connection_pool.connection_kwargs
    assert (where["host"], where["port"], where["db"]) == ("::1", 7, 3)
    assert (where["username"], where["password"]) == ("us@er", "p/w#")
    assert broker.parse_address(odd.url) == odd
    tls = broker.parse_address("rediss://:p@h/0?ssl_ca_certs=/etc/ca.pem").tls
    assert tls is not None
    assert (tls["ssl_cert_reqs"], tls["ssl_check_hostname"]) == ("required", True)
    assert tls["ssl_ca_certs"] == "/etc/ca.pem"


@pytest.mark.parametrize(
    "name", ["LEASE_S", "STOP_S", "AGING_S", "ATTEMPT_S", "RUNTIME_TIMEOUT_S", "MAX_QUEUED"]
)
@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "9" * 20])
def test_numbers_that_nothing_takes_are_refused_as_settings(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"MARCO_{name}", value)
    with pytest.raises(InvalidSettings, match=f"MARCO_{name}"):
        settings_module.load.__wrapped__()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WEBHOOK_NETWORKS", "mine", "must be networks such as 10.1.0.0/16, separated by commas"),
        ("TENANT", "\udcff", "must be UTF-8"),
    ],
)
def test_a_setting_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"MARCO_{name}", value)
    with pytest.raises(InvalidSettings, match=f"MARCO_{name}: {said}"):
        settings_module.load.__wrapped__()
