"""One event is one line, whatever is in it."""

from __future__ import annotations

import json
import logging

import pytest

from marco_search import logs
from marco_search.logs import JsonLines, Lines

FORGED = "bad\n2026-01-01 00:00:00,000 CRITICAL MainProcess root: FORGED\x1b[31m\u2028\x9b"


def lines(**record: object) -> list[str]:
    values = {"name": "marco", "levelname": "ERROR", "processName": "worker-1", "msg": "job %s"}
    found = logging.makeLogRecord(values | record)
    return (
        Lines("%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s")
        .format(found)
        .split("\n")
    )


def test_a_message_stays_on_its_line() -> None:
    (line,) = lines(args=(FORGED,))
    assert line.isprintable()
    assert r"job bad\n2026-01-01" in line


def test_a_traceback_looks_like_no_event() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        found = lines(args=("7",), exc_info=(ValueError, error, error.__traceback__))
    assert found[0].endswith("ERROR worker-1 marco: job 7")
    assert len(found) > 4
    assert all(line.startswith("    | ") and line.isprintable() for line in found[1:])


def test_no_secret_of_the_environment_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARCO_RUNTIME_API_KEY", "sesame-open")
    (line,) = lines(args=("Authorization: Bearer sesame-open",))
    assert "sesame" not in line


def test_an_event_in_json_says_what_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARCO_RUNTIME_API_KEY", "sesame-open")
    record = logging.makeLogRecord({"name": "marco", "levelname": "ERROR", "msg": FORGED})
    try:
        raise ValueError("Bearer sesame-open")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    with logs.about(job="j", attempt=2, round=0):
        logs.now_about(round=3)
        line = JsonLines().format(record)
    assert "sesame" not in line and line.isascii() and line.isprintable()
    event = json.loads(line)
    assert (event["level"], event["message"]) == ("error", FORGED)
    assert (event["job"], event["attempt"], event["round"]) == ("j", 2, 3)
    assert "ValueError" in event["traceback"]
    assert "job" not in json.loads(JsonLines().format(record))
