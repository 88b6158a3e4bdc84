"""Addresses of Postgres: what can be read is shown without its password, the rest not at all."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from marco_search.errors import InvalidSettings
from marco_search.settings import Settings
from marco_search.store import postgres
from marco_search.store.db import Database


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hush99%zz@h/db",
        "postgresql://u:hush@[::1/db",
        "postgresql://u:hush@::1/db",
        "postgresql://u:hu/hush@h/db",
        "postgresql://u:1/hush@h/db",
        "postgresql://u:hu@hush@h/db",
        "postgresql://u:hu%ffhush@h/db",
        "postgresql://u:hush",
        "postgresql://u:99999999",
        "postgresql://u:p@h:hush/db",
        "postgresql://u:p@h/db?hush=1",
        "postgresql://u:p@h/db?password=hush&&",
        "postgresql://u:hush%00@h/db",
        "postgresql://u:p@h/db?connect_timeout=hush",
        "postgresql://u:hush@h/db?connect_timeout=+-5",
        "postgresql//u:hush@h",
        "postgresql://u:hush@a..b/db",
        "postgresql://u:hush@h1,.h2/db",
        f"postgresql://u:hush@{'h' * 64}/db",
        "postgresql://u:hush@h%0a/db",
        "hush",
    ],
)
def test_an_address_that_is_no_good_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidSettings, match="DATABASE_URL") as refused:
        Database(url, application="test")
    told = str(refused.value) + postgres.shown(url)
    assert not any(secret in told for secret in ("hush", "hu@", "99999999"))
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hush@h:5433/db", "postgresql://u:***@h:5433/db"),
        ("postgresql://u:hush@h1:1,h2:2/db", "postgresql://u:***@h1:1,h2:2/db"),
        ("postgresql://u:hush@[::1]:5/db", "postgresql://u:***@[::1]:5/db"),
        ("postgresql://h/db?user=u&passwor%64=hu@sh", "postgresql://u:***@h/db"),
        ("postgresql://u@h/db?sslpassword=hush&sslmode=require", "postgresql://u@h/db"),
        ("postgresql://u:hu%40hush@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:hu?hush@h/db", "postgresql://u:***@h/db"),
        ("postgresql:///db?host=/run/pg", "postgresql:///run/pg/db"),
    ],
)
def test_a_password_is_shown_in_no_form(url: str, shown: str) -> None:
    assert postgres.shown(url) == shown


def test_of_several_hosts_one_that_takes_writes_is_wanted() -> None:
    wanted = "target_session_attrs"
    several = "postgresql://h1,h2/db"
    assert conninfo_to_dict(postgres.conninfo(several, "t"))[wanted] == "read-write"
    assert wanted not in conninfo_to_dict(postgres.conninfo(several, "t", writes=False))
    assert wanted not in conninfo_to_dict(postgres.conninfo("postgresql://h1/db", "t"))
    given = conninfo_to_dict(postgres.conninfo(f"{several}?{wanted}=standby", "t"))
    assert given[wanted] == "standby"


def test_a_line_break_at_the_end_of_an_address_is_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", " postgresql://h/db\r\n")
    monkeypatch.setenv("REDIS_URL", " \n")
    settings = Settings()
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://h/db"
    assert settings.redis_url is None


def test_a_machine_that_vanished_is_noticed_unless_the_address_says_otherwise() -> None:
    given = conninfo_to_dict(postgres.conninfo("postgresql://h/db", "test"))
    assert (given["tcp_user_timeout"], given["keepalives_idle"]) == ("8000", "5")
    own = "postgresql://h,i/db?keepalives_idle=60&tcp_user_timeout=0"
    given = conninfo_to_dict(postgres.conninfo(own, "test"))
    assert (given["tcp_user_timeout"], given["keepalives_idle"]) == ("0", "60")
    assert given["keepalives_count"] == "3"
