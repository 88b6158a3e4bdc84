"""Files and batches over HTTP, as OpenAI's own client uses them."""

from __future__ import annotations

import http.client
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from marco_search.errors import InputError
from marco_search.store import uploaded_files
from marco_search.store.db import Database
from marco_search.store.queue import batches, recovery
from ops.bench.harness import wait_until
from producer import Producer
from tests.integration.test_api import Api, api, serving, work  # noqa: F401  # fixtures

ENDPOINT = "/v1/chat/completions"
LINES: list[dict[str, Any]] = [
    {"custom_id": f"q{i}", "method": "POST", "url": ENDPOINT, "body": {
        "model": "any", "max_completion_tokens": 64, "marco": {"options": {"strategy": "cot"}},
        "messages": [{"role": "user", "content": f"{i} + 1?"}]}} for i in range(3)
]  # fmt: skip
WRONG = {"custom_id": "wrong", "method": "POST", "url": "/v1/embeddings", "body": {}}


def client(api: Api, **key: Any) -> OpenAI:  # noqa: F811
    return OpenAI(base_url=f"{api.address}v1", api_key=api.key(**key), max_retries=0)


def submitted(given: OpenAI, lines: list[dict[str, Any]], window: Any = "24h") -> Batch:
    text = "\n".join(map(json.dumps, lines)).encode()
    file = given.files.create(file=("in.jsonl", text), purpose="batch")
    return given.batches.create(
        input_file_id=file.id, endpoint=ENDPOINT, completion_window=window, metadata={"ticket": "7"}
    )


def reached(given: OpenAI, batch: Batch, *states: str) -> Batch:
    found = [batch]

    def there() -> bool:
        found[0] = given.batches.retrieve(batch.id)
        return found[0].status in states

    wait_until(there, every_s=0.1)
    return found[0]


def content(given: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in given.files.content(file_id).text.splitlines()]


def test_a_file_becomes_a_batch_and_its_results_files(
    api: Api, work: Callable[[], None]  # noqa: F811
) -> None:  # fmt: skip
    acme = client(api)
    made = submitted(acme, [LINES[0], WRONG, *LINES[1:]])
    assert (made.status, made.completion_window, made.metadata) == (
        "validating", "24h", {"ticket": "7"},
    )  # fmt: skip
    assert made.expires_at == made.created_at + 86400
    reached(acme, made, "completed")
    with api.database.transaction() as conn:
        batches.mark_finished(conn)  # as a scheduler does every second
    done = acme.batches.retrieve(made.id)
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 4, "completed": 3, "failed": 1}
    assert done.created_at <= (done.in_progress_at or 0) <= (done.completed_at or 0)
    assert done.usage is not None and done.model == "toy-marco-o1"
    assert 0 < done.usage.output_tokens < done.usage.total_tokens
    listed_jobs = acme.get(f"{api.address}jobs?batch_id={made.id}&state=succeeded", cast_to=object)
    assert len(listed_jobs["data"]) == 3
    output = content(acme, done.output_file_id)
    assert [line["custom_id"] for line in output] == ["q0", "q1", "q2"]
    assert all(o["response"]["body"]["choices"][0]["message"]["content"] for o in output)
    (error,) = content(acme, done.error_file_id)
    assert (error["custom_id"], error["error"]["code"]) == ("wrong", "invalid_request")
    assert "line 2: url" in error["error"]["message"]
    shown = acme.files.retrieve(str(done.output_file_id))
    assert (shown.purpose, shown.bytes) == (
        "batch_output", len(acme.files.content(shown.id).content),
    )  # fmt: skip
    with pytest.raises(openai.UnprocessableEntityError, match="can't be deleted"):
        acme.files.delete(shown.id)
    given = acme.files.retrieve(done.input_file_id)
    assert (given.filename, given.purpose) == ("in.jsonl", "batch")
    assert len(acme.files.content(given.id).content) == given.bytes
    assert [file.id for file in acme.files.list()] == [given.id]
    assert acme.files.delete(given.id).deleted and not list(acme.files.list())
    more = [submitted(acme, [WRONG]) for _ in range(2)]
    asked: dict[str, Any] = {"endpoint": ENDPOINT, "extra_headers": {"Idempotency-Key": "nightly"}}
    asked |= {"input_file_id": more[1].input_file_id}
    again = [acme.batches.create(**asked, completion_window="24h").id for _ in range(2)]
    assert len(set(again)) == 1
    with pytest.raises(openai.ConflictError, match="used for a different batch"):
        acme.batches.create(**asked, completion_window="1h")  # type: ignore[arg-type]
    failed = reached(acme, more[0], "failed")
    assert failed.errors and failed.errors.data and failed.errors.data[0].line == 1
    listed = [batch.id for batch in acme.batches.list(limit=1)]  # goes on from page to page
    assert listed == [again[0], more[1].id, more[0].id, made.id]
    other = client(api, tenant="other")
    assert not list(other.batches.list()) and not list(other.files.list())
    later = submitted(other, [WRONG])  # not even whether there is one
    assert not list(acme.batches.list(after=later.id))
    assert not list(acme.batches.list(after=f"batch_{'0' * 32}"))
    for call in (
        lambda: other.batches.retrieve(made.id),
        lambda: other.batches.cancel(made.id),
        lambda: other.files.content(str(done.output_file_id)),
        lambda: other.files.retrieve(str(done.error_file_id)),
        lambda: other.files.retrieve(more[0].input_file_id),
        lambda: other.files.delete(more[0].input_file_id),
        lambda: other.batches.create(
            input_file_id=more[0].input_file_id, endpoint=ENDPOINT, completion_window="24h"),
        lambda: acme.files.retrieve("file-1"),
        lambda: acme.batches.retrieve("batch_1"),
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            call()
    reader = client(api, rights=["read"])
    for call in (
        lambda: reader.batches.cancel(made.id),
        lambda: reader.files.create(file=("in.jsonl", b"{}"), purpose="batch"),
    ):
        with pytest.raises(openai.PermissionDeniedError):
            call()


def test_of_many_refused_lines_the_file_has_all_and_the_status_the_first(
    api: Api,  # noqa: F811
) -> None:
    many = client(api, tenant="refused")
    failed = reached(many, submitted(many, [WRONG] * 1001), "failed")
    assert failed.errors and len(failed.errors.data or ()) == 100
    lines = content(many, failed.error_file_id)
    assert [line["id"].rpartition("-")[2] for line in lines] == [str(i) for i in range(1, 1002)]


def test_a_batch_is_cancelled_or_expires(api: Api) -> None:  # noqa: F811
    acme = client(api, tenant="slow")
    cancelled = reached(acme, submitted(acme, LINES), "in_progress")
    assert acme.batches.cancel(cancelled.id).status == "cancelled"
    codes = {line["error"]["code"] for line in content(acme, f"file-error-{cancelled.id[6:]}")}
    assert codes == {"batch_cancelled"}
    late = reached(acme, submitted(acme, LINES, "1h"), "in_progress")
    assert late.expires_at == late.created_at + 3600
    with api.database.transaction() as conn:
        conn.execute("UPDATE jobs SET expires_at = now() - interval '1 s' WHERE tenant = 'slow'")
        assert recovery.expire_unbegun(conn) == 3
        batches.mark_finished(conn)
    expired = reached(acme, late, "expired")
    assert {line["error"]["code"] for line in content(acme, expired.error_file_id)} == {
        "batch_expired"
    }
    assert expired.output_file_id is None and expired.expired_at is not None
    short = submitted(acme, LINES, "90m")
    assert acme.batches.retrieve(short.id).completion_window == "90m"


def test_what_can_t_be_a_file_or_a_batch(api: Api) -> None:  # noqa: F811
    acme = client(api, tenant="wrong")
    for data, purpose in ((b"{}", "assistants"), (b"", "batch"), (b"\x1f\x8b\x08", "batch")):
        with pytest.raises(openai.UnprocessableEntityError):
            acme.files.create(file=("in.jsonl", data), purpose=purpose)  # type: ignore[arg-type]
    with api.http() as plain:
        answer = plain.post("v1/files", data={"purpose": "batch", "file": "{}"})
        assert "must be a file of a form" in answer.json()["error"]["message"]
    file = acme.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    fits: Any = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}
    many = {str(i): "" for i in range(17)}
    for wrong, said in (
        ({"completion_window": "soon"}, "must be a duration such as 90m, 24h or 7d, not 'soon'"),
        ({"endpoint": "/v1/embeddings"}, "use one of: /v1/chat/completions"),
        ({"metadata": many}, "must have at most 16 entries"),
        ({"metadata": {"x" * 65: ""}}, "too long: 65 characters"),
        ({"metadata": {"x": "y\0"}}, "metadata.x: holds a NUL"),
    ):
        with pytest.raises(openai.UnprocessableEntityError, match=said):
            acme.batches.create(**fits | wrong)
    with api.database.transaction() as conn:
        conn.execute("UPDATE files SET expires_at = now() - interval '1 s' WHERE tenant = 'wrong'")
    with pytest.raises(openai.NotFoundError):
        acme.files.retrieve(file.id)
    with api.database.transaction() as conn:
        assert uploaded_files.delete_expired(conn) == 1
    small = api.env | {"MARCO_API_FILES_MB": "1"}
    with serving(small) as printed:
        full = acme.with_options(base_url=f"{printed['address']}v1")
        text = b'{"custom_id": "long"}\n' * 60_000
        with pytest.raises(openai.BadRequestError, match="may have files of 1,048,576 bytes"):
            full.files.create(file=("in.jsonl", text), purpose="batch")
        some = text[: 700 * 1024]
        first = slow_upload(printed["address"], full.api_key, some)
        assert next(first) == 100
        with pytest.raises(openai.BadRequestError, match="may have files of 1,048,576 bytes"):
            full.files.create(file=("in.jsonl", some), purpose="batch")
        assert next(first) == 200
        assert [file.bytes for file in full.files.list()] == [len(some)]


def slow_upload(address: str, key: str, data: bytes) -> Iterator[int]:
    """Yields once the server asks for the body, and then with the status of the answer."""
    url = urlsplit(address)
    form = httpx.Request("POST", address, files={"file": data}, data={"purpose": "batch"})
    body = form.read()
    with closing(http.client.HTTPConnection(str(url.hostname), url.port or 80)) as connection:
        head = {"Content-Type": form.headers["Content-Type"], "Authorization": f"Bearer {key}"}
        head["Expect"] = "100-continue"
        connection.putrequest("POST", "/v1/files")
        for name, value in (head | {"Content-Length": str(len(body))}).items():
            connection.putheader(name, value)
        connection.endheaders()
        assert b"100 Continue" in connection.sock.recv(100)
        yield 100
        connection.send(body)
        yield connection.getresponse().status


def test_both_of_two_uploads_fit_alone(api: Api) -> None:  # noqa: F811
    """Two processes store at once: the one that is second is refused."""
    given: dict[str, Any] = {"tenant": "two", "name": "a", "expires_in_s": 60, "most": 15}
    with api.database.transaction() as first:
        uploaded_files.store(first, io.BytesIO(b"0123456789"), **given)
        outcome: list[BaseException | None] = []

        def second() -> None:
            try:
                with api.database.transaction() as conn:
                    uploaded_files.store(conn, io.BytesIO(b"0123456789"), **given)
            except InputError as error:
                outcome.append(error)

        thread = threading.Thread(target=second)
        thread.start()
        wait_until(lambda: waits_for_a_lock(api.database))
    thread.join()
    assert "would have 20" in str(outcome[0])


def test_uploads_of_a_tenant_leave_threads_and_connections_to_others(
    api: Api,  # noqa: F811
) -> None:
    greedy, other = client(api, tenant="greedy"), client(api, tenant="modest")
    waits = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'jobs'::regclass"
    with api.database.transaction() as conn:
        conn.execute("LOCK TABLE jobs IN SHARE MODE")  # so that no upload gets on
        made = [submitted(greedy, LINES) for _ in range(8)]
        wait_until(lambda: conn.execute(waits).rowcount > 0)
        assert list(other.files.list()) == []
        assert conn.execute(waits).rowcount == 1
    for batch in made:
        assert reached(greedy, batch, "in_progress").request_counts is not None


def test_a_file_is_not_deleted_under_a_batch_that_is_begun(api: Api) -> None:  # noqa: F811
    acme = client(api, tenant="under")
    file = acme.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    outcome: list[object] = []

    def delete() -> None:
        try:
            outcome.append(acme.files.delete(file.id))
        except openai.BadRequestError as error:
            outcome.append(error)

    with api.database.transaction() as conn:
        given: dict[str, Any] = {"tenant": "under", "file_id": UUID(file.id[5:])}
        uploaded_files.kept(conn, given["file_id"], tenant="under")
        batches.begin(conn, **given)
        thread = threading.Thread(target=delete)
        thread.start()
        wait_until(lambda: waits_for_a_lock(api.database))
    thread.join()
    assert "a batch is being made from" in str(outcome[0])


def waits_for_a_lock(database: Database) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
    with database.transaction() as conn:
        return conn.execute(query).fetchone() != (0,)


def test_an_upload_goes_on_at_another_process(api: Api) -> None:  # noqa: F811
    """What one process left half-way, because too much was queued, another finishes."""
    acme = client(api, tenant="many")
    lines = [line | {"custom_id": f"m{i}"} for i, line in enumerate(LINES * 400)]
    with serving(api.env | {"MARCO_TENANT_MAX_QUEUED": "600"}) as printed:
        full = acme.with_options(base_url=f"{printed['address']}v1")
        made = submitted(full, lines)
        with closing(Producer(api.env["DATABASE_URL"], os.devnull, tenant="many")) as producer:
            wait_until(lambda: sum(producer.batches()[0].states.values()) == 500)
        with pytest.raises(openai.BadRequestError, match="a batch is being made from"):
            full.files.delete(made.input_file_id)
    with api.database.transaction() as conn:  # its time is over, and it is still read
        conn.execute("UPDATE files SET expires_at = now() - interval '1 s' WHERE tenant = 'many'")
        assert uploaded_files.delete_expired(conn) == 0
    whole = reached(acme, made, "in_progress")
    assert whole.request_counts is not None and whole.request_counts.total == 1200
