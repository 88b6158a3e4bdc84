"""What is stored comes out byte for byte, and a terminal obeys none of it."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from producer import Producer

MARCO = Path(sys.prefix) / "bin" / "marco"
ODD = 'a \x1b[31mred\x1b[0m \x1b]52;c;eA==\x07 \x9b2J \u202eesrever, "q"\r\nnext é 好'
OBEYED = (b"\x1b[31m", b"\x1b]52", b"\x07", "\x9b".encode(), "\u202e".encode())
QUERY = "select subject, '' as nothing, null as none from audit.jobs"


@pytest.fixture
def stored(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a job whose question is ODD."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("LC_ALL", "C")  # the locale is no matter
    with Producer(database_url, redis_url) as producer:
        return str(producer.submit({"kind": "reasoning", "question": ODD}).id)


def piped(*words: str) -> bytes:
    return subprocess.run([MARCO, *words], capture_output=True, check=True).stdout


def at_a_terminal(commands: list[tuple[str, ...]]) -> bytes:
    """What they print, a line between two. One process runs all: a start takes long."""
    code = (
        "import json, sys; from marco_search.cli.main import main\n"
        "for i, words in enumerate(json.loads(sys.argv[1])):\n"
        "    print('--next--' if i else '', flush=True)\n"
        "    assert main(words) in (0, 2, 3)"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(commands)],
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass  # the other side was closed: the command has ended
        os.close(ours)
    assert process.returncode == 0, shown
    return shown


def test_a_pipe_gets_what_is_stored(stored: str, tmp_path: Path) -> None:
    found = piped("sql", "--csv", QUERY).decode()
    assert list(csv.reader(io.StringIO(found, newline="")))[1] == [ODD, "", ""]
    assert found.endswith(',"",\n')
    assert json.loads(piped("sql", "--json", QUERY))[0]["subject"] == ODD
    assert json.loads(piped("show", stored, "--json"))["job"]["subject"] == ODD
    for kind in ("dot", "json"):
        piped("show", stored, "--format", kind, "-o", str(tmp_path / kind))
        assert piped("show", stored, "--format", kind) == (tmp_path / kind).read_bytes()
    assert json.loads((tmp_path / "json").read_text(encoding="utf-8"))["job"]["subject"] == ODD


def test_a_file_that_has_no_room_is_left_as_it_was(stored: str, tmp_path: Path) -> None:
    page, key = tmp_path / "page.html", tmp_path / "key.pem"
    page.write_text("old")
    for words in (
        ["show", stored, "--format", "html", "-o", str(page)],
        ["anchor", "--new-key", str(key)],
    ):
        command = ["prlimit", "--fsize=64", str(MARCO), *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode in (1, 2) and "File too large" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]


@pytest.mark.usefixtures("stored")
def test_a_pipe_gets_utf_8_in_any_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")
    assert "é题".encode() in piped("sql", r"select U&'\00e9\9898'")


def test_a_terminal_without_a_size_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert b"marco-o1" in at_a_terminal([("profile", "list")])


def test_values_that_python_does_not_know_are_as_postgres_has_them(stored: str) -> None:
    values = (
        "'infinity'::timestamptz", "'0044-03-15 00:00:00 BC'::timestamp", "'12000-01-01'::date",
        "'24:00:00'::time", "'-infinity'::interval", "'1 mon 3 days'::interval",
        "10::numeric ^ 5000", "10::numeric ^ 400 + 0.5", "'1e5000'::jsonb",
        """'{"a": 1.10}'::jsonb""", """'{"a":  1e400}'::json""",
        "(repeat('[', 5000) || repeat(']', 5000))::jsonb",
    )  # fmt: skip
    csv.field_size_limit(1_000_000)
    texts = ", ".join(f"({value})::text" for value in values)
    for words in ((), ("--json",), ("--csv",)):
        found = piped("sql", *words, f"select {', '.join(values)}").decode()
    wanted = piped("sql", "--csv", f"select {texts}").decode()
    assert [*csv.reader(io.StringIO(found))][1] == [*csv.reader(io.StringIO(wanted))][1]


def test_a_terminal_obeys_nothing_of_it(stored: str) -> None:
    commands = [
        ("sql", "--csv", QUERY),
        ("sql", "--json", QUERY),
        ("sql", QUERY),
        ("sql", f'select 1 as "{ODD}"'),
        ("sql", f'select "{ODD}"'),
        ("show", stored),
        ("show", stored, "--format", "html"),
        ("show", stored, "--format", "dot"),
        ("show", ODD),
        ("status",),
        ("status", "--state", ODD),
        ("pause", "--tenant", ODD),
        ("resume", "--tenant", ODD),
    ]
    shown = at_a_terminal(commands).split(b"--next--")
    assert len(shown) == len(commands)
    for words, text in zip(commands, shown, strict=True):
        assert text.strip()
        assert [bad for bad in OBEYED if bad in text] == [], words


def test_what_ends_a_query_is_said(stored: str, database_url: str) -> None:
    def refused(query: str, code: int) -> str:
        done = subprocess.run([MARCO, "sql", query], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stderr

    assert "--set NAME=VALUE" in refused("select $1::int", 2)
    assert "several statements: give one" in refused("select 1; select 2", 2)
    kill = "select pg_terminate_backend(pg_backend_pid()), pg_sleep(1)"
    assert "the connection ended" in refused(kill, 4)
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_psql_gets_the_password_out_of_sight(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    query = ("psql", "-At", "-c", "SELECT 2")
    monkeypatch.setenv("PATH", str(tmp_path))  # then it is the embedded Postgres' own
    assert piped(*query) == b"2\n"
    fake = tmp_path / "psql"
    fake.write_text('#!/bin/sh\necho "$PGPASSWORD" "$@"\n')
    fake.chmod(0o755)
    password, _, line = piped(*query).decode().partition(" ")
    assert password in database_url
    assert password not in line
    assert line.endswith("-At -c SELECT 2\n")
    assert piped("psql", "--print-url").decode() == f"{database_url}\n"
