"""The console's routes over records in memory: who is let in, what is sent, how often it reads."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient

from marco_search.console.access import Access, Expiring, local_path
from marco_search.console.app import create_app
from marco_search.console.reader import Cache
from marco_search.errors import DatabaseUnavailable
from marco_search.settings import Settings
from tests.records import AT, HOSTILE, FakeReader, job_id, record_of, search_of, tokens_of

SEARCH = search_of()
TOKEN = "a-token-of-enough-characters"
HTML = {"accept": "text/html"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def reader() -> FakeReader:
    made = FakeReader()
    made.put(record_of(SEARCH, 1), tokens_of(SEARCH))
    made.put(record_of(SEARCH, 2, rounds=1), tokens_of(SEARCH))
    return made


def client_of(
    reader: FakeReader,
    token: str | None = None,
    clock: Clock | None = None,
    host: str = "127.0.0.1",
) -> TestClient:
    app = create_app(reader, Access(token), Cache(clock=clock or Clock()))
    return TestClient(app, base_url="http://127.0.0.1:8780", follow_redirects=False)


def test_every_page_answers(reader: FakeReader) -> None:
    client = client_of(reader)
    assert client.get("/").headers["location"] == "/jobs"
    one = f"/jobs/{job_id(1)}"
    for path, text in {
        "/jobs": "What is 1 + 1?", "/batches": "No batch yet", "/tenants": "default",
        "/models": "No job", "/datasets": "No data set yet",
        one: 'id="node-1"', f"{one}/tree.svg": "<svg",
        f"{one}/report.html": "Content-Security-Policy", "/static/console.css": "--accent",
    }.items():  # fmt: skip
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert text in answer.text, path
    tree = client.get(f"{one}/tree.json").json()
    assert set(tree) == {"nodes", "rollouts", "winning_path", "answers"}
    node = client.get(f"{one}/nodes/1.json").json()
    assert node["tokens"]["ids"] and node["vocabulary"]


def test_security_headers(reader: FakeReader) -> None:
    client = client_of(reader)
    for path in ("/jobs", "/nowhere", "/static/live.js", f"/jobs/{job_id(1)}/tree.json"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("no-cache" if "static" in path else "no-store")


def test_pages_hold_no_inline_script_style_or_handler(reader: FakeReader) -> None:
    client = client_of(reader)
    for path in ("/jobs", f"/jobs/{job_id(1)}", "/login", "/nowhere"):
        html = client.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=", html), path
        assert not re.search(r'(?:src|href|action)="(?!/|#)', html), path


def test_hostile_text_is_only_ever_text(reader: FakeReader) -> None:
    record = record_of(SEARCH, 3, subject=HOSTILE, answer=HOSTILE, error=HOSTILE, state="failed")
    nodes = tuple(replace(node, text=HOSTILE) for node in record.nodes)
    answers = tuple(a.model_copy(update={"text": HOSTILE}) for a in record.answers)
    tokens = {
        i: replace(row, token_texts=[HOSTILE] * len(row.token_ids))
        for i, row in tokens_of(SEARCH).items()
    }
    reader.put(replace(record, nodes=nodes, answers=answers), tokens)
    client = client_of(reader)
    one = f"/jobs/{job_id(3)}"
    for path in ("/jobs", one, f"{one}/report.html", f"{one}/tree.svg"):
        text = client.get(path).text
        assert "<script>document" not in text and "<img" not in text, path
        assert "49" not in re.findall(r"onerror=alert\(1\).{0,20}", text), path
    assert client.get(f"{one}/tree.json").headers["content-type"] == "application/json"


def test_missing_pages_and_bad_queries(reader: FakeReader) -> None:
    client = client_of(reader)
    for path in (
        f"/jobs/{job_id(9)}",
        "/jobs/zzz",
        "/nowhere",
        f"/jobs/{job_id(1)}/nodes/999.json",
        *(f"/jobs/{job_id(1)}/nodes/{n}.json" for n in (2**31, 10**30, "9" * 5000, -1, "x", "٣")),
    ):
        assert client.get(path).status_code == 404, path
    bad = client.get("/jobs?state=sleeping")
    assert bad.status_code == 400 and "must be one of" in bad.text
    assert client.get("/jobs?batch=12").status_code == 400
    for word, reason in (("%00", "holds a NUL character"), ("a" * 1201, "at most 1,200")):
        bad = client.get(f"/models?old={word}")
        assert bad.status_code == 400 and "old: " in bad.text
        assert reason in bad.text
    assert client.post("/jobs").status_code == 405


def test_a_part_of_an_id_leads_to_the_job(reader: FakeReader) -> None:
    client = client_of(reader)
    part = str(job_id(1))[-8:]
    assert client.get(f"/jobs/{part}").headers["location"] == f"/jobs/{job_id(1)}"
    file = client.get(f"/jobs/{part}/report.html")
    assert file.headers["location"] == f"/jobs/{job_id(1)}/report.html"
    other = UUID(int=job_id(1).int + (1 << 100))
    reader.put(record_of(SEARCH, 1, job_id=other), {})
    assert client.get(f"/jobs/{part}").headers["location"] == f"/jobs?text={part}"
    assert client.get(f"/jobs/{job_id(1)}/nothing").status_code == 404
    assert client.get(f"/jobs/{job_id(1)}/").headers["location"] == f"/jobs/{job_id(1)}"


def test_health_needs_no_token_and_tells_of_the_database(reader: FakeReader) -> None:
    clock = Clock()
    client = client_of(reader, TOKEN, clock)
    assert (client.get("/healthz").status_code, client.get("/healthz").text) == (200, "ok\n")

    def gone() -> bool:
        raise DatabaseUnavailable("no answer from a.secret.host")

    reader.answers = gone  # type: ignore[method-assign]
    clock.now += 2
    answer = client.get("/healthz")
    assert answer.status_code == 503 and "secret" not in answer.text
    # It may also be there, and migrated by another version.
    assert answer.text == "The database can't be used: the pages say why.\n"


def test_a_download_holds_no_formula(reader: FakeReader) -> None:
    job: dict[str, Any] = {
        "subject": "=1+1",
        "answer": "-5",
        "idempotency_key": "@key",
        "metadata": {"a": "b"},
    }
    reader.put(record_of(SEARCH, 3, **job, error="-x\ny", seconds=0.5), {})
    answer = client_of(reader).get("/jobs.csv?kind=reasoning")
    assert "attachment" in answer.headers["content-disposition"]
    first, *_ = csv.DictReader(io.StringIO(answer.text))
    assert first["job_id"] == str(job_id(3)) and first["seconds"] == "0.5"
    assert (first["subject"], first["idempotency_key"]) == ("'=1+1", "'@key")
    assert (first["answer"], first["error"]) == ("-5", "'-x\ny")  # a number stays one
    assert json.loads(first["metadata"]) == {"a": "b"}


def test_controls_of_direction_are_spelt_out(reader: FakeReader) -> None:
    text = "pay \u202e54321\u202c euros"
    record = record_of(SEARCH, 3, subject=text, metadata={"note": text}, answer=text)
    reader.put(record, {})
    client = client_of(reader)
    for path in ("/jobs", f"/jobs/{job_id(3)}"):
        page = client.get(path).text
        assert "\u202e" not in page and "pay \\u202e54321\\u202c euros" in page, path
    assert "<title>pay \\u202e" in client.get(f"/jobs/{job_id(3)}").text
    assert "\u202e" not in client.get(f"/jobs/{job_id(3)}/tree.svg").text
    # Searching again with the form searches for the same.
    assert 'value="\u202e"' in client.get("/jobs?text=%E2%80%AE").text


def test_the_page_shows_the_request_and_tracebacks_line_by_line(reader: FakeReader) -> None:
    payload = {
        "priority": "high",
        "system_prompt": "Be kind.",
        "options": {"rollouts": 7},
        "target": "Basque",
    }
    record = record_of(SEARCH, 3, payload=payload, metadata={"ticket": 12, "ok": True},
                       idempotency_key="rq-7", custom_id="c-9", expires_at=AT)  # fmt: skip
    detail = {"type": "KeyError", "traceback": "Traceback:\n  File <x>\nKeyError\n"}
    event = replace(record.events[0], event="failed", detail=detail)
    answers = (record.answers[0].model_copy(update={"output": "It is 2."}), *record.answers[1:])
    reader.put(replace(record, events=(event,), answers=answers), {})
    page = client_of(reader).get(f"/jobs/{job_id(3)}").text
    for text in ("high", "Be kind.", "Basque", ">7<", "rq-7", "c-9", "ticket",
                 ">12<", ">true<", "2026-11-22 12:00:00",
                 "It is 2.", ">Traceback:\n  File &lt;x&gt;\nKeyError\n</pre>"):  # fmt: skip
        assert text in page, text


def test_a_bug_is_a_page_without_its_details(reader: FakeReader) -> None:
    def fail() -> None:
        raise RuntimeError("a secret")

    reader.tenants = fail  # type: ignore[assignment, method-assign]
    app = create_app(reader, Access(None))
    client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    answer = client.get("/tenants")
    assert answer.status_code == 500
    assert "a secret" not in answer.text and "has a bug" in answer.text
    assert "content-security-policy" in answer.headers


def test_filters_stay_in_the_form_and_in_the_links(reader: FakeReader) -> None:
    html = client_of(reader).get("/jobs?state=running&text=%3Cb%3E").text
    assert 'name="state" value="running"' in html
    assert 'value="&lt;b&gt;"' in html
    assert f"/jobs/{job_id(2)}" in html and f"/jobs/{job_id(1)}" not in html


def test_with_a_token_nothing_is_shown_without_it(reader: FakeReader) -> None:
    client = client_of(reader, TOKEN)
    for path in ("/jobs", f"/jobs/{job_id(1)}", "/nowhere"):
        answer = client.get(path, headers=HTML)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/login?next=%2F")
        assert client.get(path).status_code == 401
    assert reader.reads == 0
    assert client.get("/login").status_code == 200
    wrong = client.get("/jobs", headers={"authorization": f"Bearer {TOKEN}x"})
    assert wrong.status_code == 401
    right = client.get("/jobs", headers={"authorization": f"Bearer {TOKEN}"})
    assert right.status_code == 200


def test_logging_in_gives_a_cookie_that_is_not_the_token(reader: FakeReader) -> None:
    client = client_of(reader, TOKEN)
    assert client.post("/login", data={"token": "wrong"}).status_code == 403
    assert client.post("/login", data={"token": "x" * 10_000}).status_code == 403
    answer = client.post("/login", data={"token": TOKEN, "next": f"/jobs/{job_id(1)}"})
    assert answer.headers["location"] == f"/jobs/{job_id(1)}"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert client.get("/jobs", headers=HTML).status_code == 200
    session = dict(client.cookies)
    client.post("/logout")
    assert client.get("/jobs", headers=HTML).status_code == 303
    client.cookies.update(session)  # a copy of the cookie has ended as well
    assert client.get("/jobs", headers=HTML).status_code == 303


def test_a_session_expires(reader: FakeReader) -> None:
    clock = Clock()
    access = Access(TOKEN, session_s=60, clock=clock)
    client = TestClient(create_app(reader, access), base_url="http://127.0.0.1")
    client.post("/login", data={"token": TOKEN})
    assert client.get("/jobs").status_code == 200
    clock.now += 61
    assert client.get("/jobs").status_code == 401


def test_sessions_and_addresses_kept_are_limited() -> None:
    kept = Expiring[bool](60, 3, Clock())
    for key in "abcde":
        kept.put(key, True)
    assert [kept.get(key) for key in "abcde"] == [None, None, True, True, True]


def test_wrong_tokens_lock_an_address_out_for_a_minute(reader: FakeReader) -> None:
    clock = Clock()
    access = Access(TOKEN, clock=clock)
    client = TestClient(
        create_app(reader, access), base_url="http://127.0.0.1", follow_redirects=False
    )
    client.post("/login", data={"token": TOKEN})
    session = dict(client.cookies)
    client.cookies.clear()
    for i in range(10):
        headers = {"authorization": f"Bearer guess-{i}"}
        assert client.get("/jobs", headers=headers).status_code == (401 if i < 9 else 429)
    blocked = client.post("/login", data={"token": TOKEN})
    assert blocked.status_code == 429 and "wait a minute" in blocked.text
    right = {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/jobs", headers=right).status_code == 429
    client.cookies.update(session)  # sessions are not affected
    assert client.get("/jobs").status_code == 200
    client.cookies.clear()
    clock.now += 61
    assert client.get("/jobs", headers=right).status_code == 200


@pytest.mark.parametrize(
    "foreign", ['x={"j":1}', "a[0]=1", "foo", "=", 'x="un;closed', "é=1", ";;", "marco_console=1"]
)
def test_cookies_of_other_programs_do_no_harm(reader: FakeReader, foreign: str) -> None:
    client = client_of(reader, TOKEN)
    client.post("/login", data={"token": TOKEN})
    (name,) = client.cookies
    mine = f"{name}={client.cookies[name]}"
    client.cookies.clear()
    for cookie in (f"{foreign}; {mine}", f"{mine}; {foreign}"):
        headers = [(b"cookie", cookie.encode())]
        assert client.get("/jobs", headers=headers).status_code == 200, cookie


@pytest.mark.parametrize(
    "elsewhere", ["https://evil.example/", "//evil.example", "/\\evil", "javascript:1", "/a\r\nb"]
)
def test_login_redirects_only_to_local_paths(elsewhere: str) -> None:
    assert local_path(elsewhere) == "/"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("127.0.0.1", 200), ("[::1]", 200), ("LOCALHOST", 200),
        ("192.168.1.20", 200), ("evil.example", 400), ("localhost.evil.example", 400),
    ],
)  # fmt: skip
def test_unknown_host_names_are_refused(reader: FakeReader, host: str, status: int) -> None:
    assert client_of(reader).get("/jobs", headers={"host": f"{host}:80"}).status_code == status


def test_host_names_can_be_allowed() -> None:
    access = Access(None, ["Console.example"])
    assert access.knows_host("console.example:443")
    assert not access.knows_host("") and not access.knows_host("example")


def test_tabs_that_refresh_share_one_read_a_second(reader: FakeReader) -> None:
    clock = Clock()
    tabs = [client_of(reader, clock=clock)] * 5
    assert tabs[0].get("/jobs").status_code == 200
    reads = reader.reads
    for second in range(1, 4):
        clock.now += 1.5
        paths = ["/jobs", "/tenants", f"/jobs/{job_id(2)}", "/jobs?state=running"]
        for tab in tabs:
            for path in paths:
                status = tab.get(path, headers={"x-refresh": "1"}).status_code
                assert status in (200, 204)
        assert reader.reads <= reads + second
    clock.now += 1.5
    assert tabs[0].get("/tenants", headers={"x-refresh": "1"}).status_code == 200


def test_the_token_of_a_mounted_secret_has_no_line_end() -> None:
    given = Settings(MARCO_CONSOLE_TOKEN=f"{TOKEN}\n").console_token  # type: ignore[call-arg]
    assert given is not None and Access(given.get_secret_value()).is_token(TOKEN, "somebody")
