"""What is printed holds no secret and nothing that a terminal obeys."""

from __future__ import annotations

import json
from urllib.parse import quote, urlsplit

import pytest
from psycopg.conninfo import conninfo_to_dict
from redis import Redis

from marco_search.text import escaped, redacted

SECRET = "SeCrEt99"


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:SeCrEt99@host/db",
        "postgresql://u:SeCrEt99%zz@host/db",
        "postgresql://u:SeCrEt99@[::1/db",
        "postgresql://u:a/SeCrEt99@host:5432/db",
        "postgresql://host/db?user=u&password=SeCrEt99",
        "postgresql://host/db?user=u&passwor%64=SeCrEt99",
        "postgresql://host/db?sslpassword=SeCrEt99",
        "postgresql//u:SeCrEt99@host/db",
        "host=h password=SeCrEt99",
        "host=h password='SeCrEt99 x'",
        "redis://:SeCrEt99#@host",
        "redis://:SeCrEt99/@host",
        "redis://:SeCrEt99@host:port/0",
        "rediss://user:x@SeCrEt99@host",
        "redis://h/0?password=SeCrEt99",
        " redis://:SeCrEt99@h\n",
    ],
)
def test_no_library_says_a_password(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", address)
    for read in (conninfo_to_dict, Redis.from_url, lambda a: urlsplit(a).port, urlsplit, int):
        try:
            said = repr(read(address))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        assert SECRET not in redacted(said)
    assert SECRET not in redacted(f"can't read {address!r}: {json.dumps(address)}")
    assert SECRET not in redacted(address)


def test_a_password_is_hidden_decoded_and_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    word = "pä ss@w/rd"
    monkeypatch.setenv("REDIS_URL", f"redis://:{quote(word, safe='')}@host")
    for spelling in (word, quote(word, safe=""), ascii(word)):
        assert word not in redacted(f"AUTH {spelling} failed")
        assert redacted(f"AUTH {word} failed") == "AUTH *** failed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MARCO_CONSOLE_TOKEN", "token-0123456789"),
        ("MARCO_RUNTIME_API_KEY", "sk-0123456789"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=0123456789abc"),
        ("PGPASSWORD", "0123456789abc"),
        ("MARCO_RUNTIME", "http://a:0123456789abc@host,http://b:fedcba987654@host"),
    ],
)
def test_keys_and_tokens_are_hidden(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    said = redacted(f"refused: {value} / {value.partition('=')[2]} / fedcba987654")
    assert "0123456789" not in said
    assert name != "MARCO_RUNTIME" or "fedcba" not in said


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://marco:marco@localhost/marco")
    monkeypatch.setenv("REDIS_URL", "redis://localhost:6379/0")
    monkeypatch.setenv("MARCO_RUNTIME", "http://localhost:30000")
    text = "redis://localhost:6379/0 http://localhost:30000: no job 0199 of marco; a?b=c, job=ID"
    assert redacted(text) == text
    assert redacted("postgresql://marco:marco@localhost/marco") == (
        "postgresql://marco:***@localhost/marco"
    )


def test_credentials_of_headers_are_hidden() -> None:
    said = (
        "{'Authorization': 'Bearer sk-0123456789'} Basic dXNlcjpwYXNzd29yZDEyMw== api-key=0a1b2c3d"
    )
    assert redacted(said) == "{'Authorization': 'Bearer ***'} Basic *** api-key=***"
    prose = "basic multiplication, max_tokens=512; the bearer of it"
    assert redacted(prose) == prose


def test_control_characters_are_shown() -> None:
    text = "a\x1b[31m\x1b]52;c;eA==\x07\x9b2J\u202eb\u2066\x7f\r\ud800 é 好 \t\n"
    shown = escaped(text)
    assert shown.endswith(" é 好 \t\n")
    assert shown.startswith("a\\u001b[31m\\u001b]52;c;eA==\\u0007\\u009b2J\\u202eb\\u2066\\u007f")
    assert json.loads(escaped(json.dumps({"x": "\x9b\u202e\x7f"}, ensure_ascii=False))) == {
        "x": "\x9b\u202e\x7f"
    }
