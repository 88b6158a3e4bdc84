"""Webhooks: signed, never lost, sent again, nowhere but to allowed addresses; one for a batch."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from marco_search.cli.main import main
from marco_search.errors import InputError
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.queue import batches, jobs, webhooks
from marco_search.store.reads.exporter import Exporter
from marco_search.store.seal import redactions
from producer import Producer
from tests.integration.toys import (
    WORKER,
    environment,
    insert,
    question,
    run_job,
    runner,
    settings_for,
    state,
    wait_until,
)
from tests.tls import make_certificate
from tests.toy import ToyRuntime
from worker.scheduler import Scheduler

OPEN = {"webhook_networks": "127.0.0.1", "webhook_http": True, "webhook_delay_s": 0.01}
Marco = Callable[..., Any]


class Receiver:
    """A server that answers each POST with the next of `statuses`, at last 204, and keeps it."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.silent = False
        self.retry_after: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((dict(self.headers), body))
                while outer.silent:
                    time.sleep(0.02)
                self.send_response(outer.statuses.pop(0) if outer.statuses else 204)
                self.send_header("Location", "/elsewhere")
                if outer.retry_after is not None:
                    self.send_header("Retry-After", outer.retry_after)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=1"
        Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()

    def messages(self, secret: str) -> list[dict[str, Any]]:
        """All that came, each verified as a receiver does."""
        return [Webhook(secret).verify(body, headers) for headers, body in list(self.got)]

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in list(self.got)]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.silent = False
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    return settings_for(database_url, redis_url, **OPEN)


@pytest.fixture
def marco(
    command_line: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Marco:
    for name, value in OPEN.items():
        monkeypatch.setenv(f"MARCO_{name.upper()}", str(value))

    def run(*words: str, code: int = 0) -> Any:
        assert main([*words, "--json"]) == code
        printed = capsys.readouterr()
        return printed.err if code else json.loads(printed.out)

    return run


@contextmanager
def scheduler(settings: Settings) -> Iterator[Scheduler]:
    """One whose ticks are the test's."""
    with closing(Scheduler(settings, WORKER)) as one:
        yield one


def tick_until(one: Scheduler, condition: Callable[[], bool], what: str) -> None:
    def ticked() -> bool:
        one.tick()
        return condition()

    wait_until(ticked, what)


def held(database: Database, **which: Any) -> list[webhooks.Delivery]:
    with database.transaction() as conn:
        return webhooks.deliveries(conn, **which)


def solved(settings: Settings, database: Database, *questions: Any) -> list[jobs.JobHandle]:
    with Producer(settings=settings) as producer:
        done = producer.submit_many(list(questions) or [question()])
    for job in done:
        run_job(runner(settings, database, ToyRuntime()), database, job.id)
    return done


def test_ends_are_told_signed_and_tried_again_until_the_receiver_recovers(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver
) -> None:
    made = marco("webhooks", "add", receiver.url)
    # Whoever ends it, and whatever happens to that worker next: it is held with the end.
    job = solved(settings, database, question(custom_id="line 7", metadata={"ticket": 7}))[0]
    (waiting,) = held(database)
    assert (waiting.job_id, waiting.state, waiting.attempts) == (job.id, "pending", 0)
    receiver.statuses = [500, 302, 503, 103]
    with scheduler(settings) as one:
        tick_until(one, lambda: len(held(database, state="delivered")) == 2, "both arrived")
    assert len(receiver.got) == 6  # the redirect was not followed
    told = {message["type"]: message["data"] for message in receiver.messages(made["secret"])}
    about = told["job.finished"]
    assert (about["job_id"], about["state"]) == (str(job.id), "succeeded")
    assert (about["custom_id"], about["metadata"]) == ("line 7", {"ticket": 7})
    assert about["answer"] and 0 < about["confidence"] <= 1
    assert about["batch_id"] == told["batch.finished"]["batch_id"] == str(job.batch_id)
    assert told["batch.finished"]["states"] == {"succeeded": 1}
    assert len(set(receiver.ids())) == 2  # an attempt has the id of the one before
    with pytest.raises(WebhookVerificationError):
        receiver.messages(webhooks.new_secret())
    sent = marco("webhooks", "deliveries", "--state", "delivered")["deliveries"]
    assert sorted(d["attempts"] for d in sent)[-1] > 1
    # Asked for once more it comes once more, and the test event comes as the others do.
    marco("webhooks", "resend", str(waiting.id))
    with scheduler(settings) as one:
        tick_until(one, lambda: len(receiver.got) == 7, "it came again")
    assert receiver.ids()[-1] == str(waiting.id)
    marco("webhooks", "remove", made["id"])
    assert not held(database)
    assert "no webhook" in marco("webhooks", "test", made["id"], code=3)


def test_a_delivery_is_given_up_and_sent_again_when_asked(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver
) -> None:
    made = marco("webhooks", "add", receiver.url, "--events", "job.finished")
    receiver.statuses, receiver.retry_after = [503, 500, 500], "3600"
    solved(settings, database)
    with scheduler(settings) as one:
        tick_until(one, lambda: held(database)[0].error is not None, "it was tried")
        (busy,) = held(database)
        assert busy.tried_at and 3590 < (busy.next_at - busy.tried_at).total_seconds() < 3660
    samples = {
        f.name: f.samples[0] for f in Exporter(database, lambda: None).collect() if f.samples
    }
    assert samples["marco_webhook_deliveries_pending"].value == 1
    assert samples["marco_webhook_oldest_pending_age_seconds"].value > 0
    with database.transaction() as conn:
        conn.execute("UPDATE webhook_deliveries SET next_at = now()")
    receiver.retry_after = "soon"
    few = settings.model_copy(update={"webhook_attempts": 3})
    with scheduler(few) as one:
        tick_until(one, lambda: bool(held(database, state="failed")), "it was given up")
        (given_up,) = held(database)
        assert (given_up.attempts, given_up.error) == (3, "HTTP 500")
        assert marco("webhooks", "list")["webhooks"][0]["failed"] == 1
        again = ("webhooks", "resend", made["id"], "--failed")
        assert "no webhook" in marco(*again, "--tenant", "other", code=3)
        assert marco(*again) == {"resent": 1}
        tick_until(one, lambda: bool(held(database, state="delivered")), "it arrived")
    assert len(receiver.messages(made["secret"])) == 4


def test_an_answer_that_is_not_http_is_a_failed_attempt(
    marco: Marco, settings: Settings, database: Database
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                with suppress(OSError), listening.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(b"\x00\x1b[31m" + b"x" * 60_000 + b"\r\n")
                if listening.fileno() < 0:
                    return

        Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        marco("webhooks", "add", url, "--events", "job.finished")
        solved(settings, database)
        with scheduler(settings.model_copy(update={"webhook_attempts": 2})) as one:
            tick_until(one, lambda: bool(held(database, state="failed")), "it was given up")
    (given_up,) = held(database)
    assert given_up.attempts == 2 and given_up.error is not None
    assert given_up.error.startswith("no response: \\u0000") and len(given_up.error) < 400


def test_the_old_secret_counts_while_rotating(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver
) -> None:
    made = marco("webhooks", "add", receiver.url, "--events", "job.finished")
    new = marco("webhooks", "rotate", made["id"])["secret"]
    solved(settings, database)
    with scheduler(settings) as one:
        tick_until(one, lambda: bool(receiver.got), "one came")
        assert receiver.messages(made["secret"]) == receiver.messages(new)
        newest = marco("webhooks", "rotate", made["id"], "--overlap", "0")["secret"]
        receiver.got.clear()
        solved(settings, database)
        tick_until(one, lambda: bool(receiver.got), "another came")
        assert receiver.messages(newest)
        with pytest.raises(WebhookVerificationError):
            receiver.messages(new)
    shown = json.dumps(marco("webhooks", "list")) + json.dumps(marco("webhooks", "deliveries"))
    assert "whsec_" not in shown


def test_a_killed_scheduler_loses_nothing(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver
) -> None:
    made = marco("webhooks", "add", receiver.url, "--events", "job.finished")
    solved(settings, database)
    receiver.silent = True
    command = [sys.executable, "-m", "marco_search.cli.main", "scheduler"]
    child = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env=environment(settings), stderr=subprocess.PIPE
    )
    wait_until(lambda: bool(receiver.got), "it is being sent")
    child.kill()
    log = child.communicate()[1].decode()
    assert "whsec_" not in log and made["secret"][8:] not in log
    receiver.silent = False
    with database.transaction() as conn:  # its claim runs out
        conn.execute("UPDATE webhook_deliveries SET next_at = now()")
    with scheduler(settings) as one:
        tick_until(one, lambda: bool(held(database, state="delivered")), "it was sent again")
    assert len(set(receiver.ids())) == 1 < len(receiver.messages(made["secret"]))


def test_a_job_ends_while_a_webhook_is_removed(
    settings: Settings, database: Database, receiver: Receiver
) -> None:
    with database.transaction() as conn:
        for _ in range(2):
            hook, _ = webhooks.add(conn, receiver.url, settings, tenant="default")
    with ThreadPoolExecutor() as threads:
        with database.transaction() as conn:
            webhooks.remove(conn, hook)
            (job,) = insert(database, question())
            solving = threads.submit(
                run_job, runner(settings, database, ToyRuntime()), database, job.id
            )
            locked = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
            wait_until(lambda: conn.execute(locked).rowcount > 0, "its end waits for the webhook")
        solving.result()
    assert database.call(state, job.id) == "succeeded"
    assert len(held(database)) == 1


def test_a_silent_receiver_holds_up_no_other(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver
) -> None:
    other = Receiver()
    receiver.silent = True
    for url in (receiver.url, other.url):
        marco("webhooks", "add", url, "--events", "job.finished")
    solved(settings, database, question(), question())
    with scheduler(settings.model_copy(update={"webhook_timeout_s": 0.3})) as one:
        tick_until(one, lambda: len(other.got) == 2, "the other has all")
        tick_until(one, lambda: any(d.error for d in held(database)), "the first is too late")
    assert {d.error for d in held(database) if d.error} == {"no response within 0.3 s"}
    other.server.shutdown()
    other.server.server_close()


def test_a_batch_ends_once_whoever_ends_its_jobs(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver, tmp_path: Path
) -> None:
    made = marco("webhooks", "add", receiver.url, "--events", "batch.finished")
    file = tmp_path / "in.jsonl"
    lines = [{"kind": "reasoning", "question": f"{i}?"} for i in range(6)]
    file.write_text("\n".join(map(json.dumps, [*lines, {"kind": "no such"}])))
    done = marco("batch", "submit", str(file))
    with Producer(settings=settings) as producer:
        batch = producer.batch(done["id"])
        refused = producer.submit_batch([b"{}"])  # has no job, and ends with its upload
        ids = [line.job_id for line in lines_of(database, batch)]
        with scheduler(settings) as one:
            tick_until(one, lambda: len(receiver.got) == 1, "the one without a job")
            one.tick()
            assert producer.batch(batch.id).finished_at is None
            with database.transaction() as conn:
                half = batches.begin(conn, tenant=batch.tenant)  # cancelled before its upload
            producer.cancel_all(batch_id=half.id)
            tick_until(one, lambda: len(receiver.got) == 2, "the one that was cancelled")
            producer.cancel(ids[0])
            finish = runner(settings, database, ToyRuntime()).run_next
            with ThreadPoolExecutor(4) as pool, scheduler(settings) as two:
                for each in [*[finish] * 5, one.tick, two.tick]:
                    pool.submit(each)
            wait_until(lambda: not producer.batch(batch.id).left, "all have ended")
            tick_until(one, lambda: len(receiver.got) == 3, "the batch has ended")
            one.tick()
        assert producer.batch(batch.id).finished_at
        told = [m["data"] for m in receiver.messages(made["secret"])]
        assert [m["batch_id"] for m in told] == [str(refused.id), str(half.id), str(batch.id)]
        assert told[1]["cancelled_at"] and not told[1]["states"]
        assert told[2]["states"] == {"succeeded": 5, "cancelled": 1} and told[2]["refused"] == 1
        # Restarted it goes on, and ends again.
        assert producer.restart_batch(batch.id) == 1
        assert producer.batch(batch.id).finished_at is None
        finish()
        with scheduler(settings) as one:
            tick_until(one, lambda: len(receiver.got) == 4, "it has ended again")
    assert len(held(database)) == 4


def lines_of(database: Database, batch: batches.Batch) -> list[Any]:
    with database.transaction() as conn:
        return [each for each in batches.lines(conn, batch.id, after=0, last=100) if each.job_id]


def test_what_was_not_sent_yet_is_redacted_with_the_job(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver
) -> None:
    made = marco("webhooks", "add", receiver.url, "--events", "job.finished")
    (job,) = solved(settings, database, question(metadata={"name": "Ada"}))
    with Producer(settings=settings) as producer:
        answer = next(producer.results([job])).answer
    assert answer is not None
    with database.transaction() as conn:
        redactions.redact(conn, job.id)
    with scheduler(settings) as one:
        tick_until(one, lambda: bool(receiver.got), "it came")
    (message,) = receiver.messages(made["secret"])
    assert message["data"]["redacted"] and message["data"]["state"] == "succeeded"
    assert message["data"]["answer"] != answer.text and "Ada" not in str(message)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "https://user@example.com/", "https:///x",
        "https://example.com:99999/", "https://example.com/#a", "https://127.0.0.1/",
        "https://10.0.0.1/", "https://169.254.169.254/latest", "https://100.64.0.1/",
        "https://[::1]/", "https://[fe80::1]/", "https://[::ffff:127.0.0.1]/", "https://0.0.0.0/",
        "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://224.0.0.1/", "nothing",
    ],
)  # fmt: skip
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(InputError):
        webhooks.checked_url(url, Settings())


def test_names_are_looked_up_once_and_where_they_lead_is_checked(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[str] = []
    real, port = socket.getaddrinfo, receiver.server.server_port

    def lookup(host: Any, *given: Any, **more: Any) -> Any:
        if host != "hooks.example":
            return real(host, *given, **more)
        # A name server that changes its mind: only the first answer may count.
        asked.append(host)
        return real("127.0.0.1" if len(asked) % 2 else "10.255.255.1", *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    url = f"http://hooks.example:{port}/"
    marco("webhooks", "add", url, "--events", "job.finished")
    solved(settings, database)
    with scheduler(settings.model_copy(update={"webhook_networks": ()})) as one:
        tick_until(one, lambda: bool(held(database)[0].error), "it was refused")
    assert "is not a public address" in str(held(database)[0].error)
    assert not receiver.got
    asked.clear()
    with scheduler(settings) as one:
        tick_until(one, lambda: bool(receiver.got), "allowed, it came")
    assert asked == ["hooks.example"]
    assert receiver.got[0][0]["Host"] == f"hooks.example:{port}"


def test_an_ipv6_address_is_posted_to(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real, port = socket.create_connection, receiver.server.server_port

    def connect(where: tuple[str, int], *given: Any) -> socket.socket:
        return real(("127.0.0.1", port) if where == ("fd00::ab", port) else where, *given)

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv("MARCO_WEBHOOK_NETWORKS", "fd00::/8")
    marco("webhooks", "add", f"http://[fd00::ab]:{port}/", "--events", "job.finished")
    solved(settings, database)
    networks = (ip_network("fd00::/8"),)
    with scheduler(settings.model_copy(update={"webhook_networks": networks})) as one:
        tick_until(one, lambda: held(database)[0].attempts > 0, "it was sent")
        tick_until(one, lambda: bool(held(database, state="delivered")), "it came")
    assert receiver.got[0][0]["Host"] == f"[fd00::ab]:{port}"


def test_an_address_that_is_silent_leaves_time_for_the_next(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    look_up, real = socket.getaddrinfo, socket.create_connection
    given: list[float] = []

    def addresses(host: Any, *more: Any, **named: Any) -> Any:
        if host != "hooks.example":
            return look_up(host, *more, **named)
        return look_up("127.0.0.2", *more, **named) + look_up("127.0.0.1", *more, **named)

    def connect(where: tuple[str, int], *more: Any) -> socket.socket:
        if where[0] == "127.0.0.2":
            given.append(more[0])
            raise TimeoutError
        return real(where, *more)

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    monkeypatch.setattr(socket, "create_connection", connect)
    url = f"http://hooks.example:{receiver.server.server_port}/"
    marco("webhooks", "add", url, "--events", "job.finished")
    solved(settings, database)
    limits = {"webhook_networks": (ip_network("127.0.0.0/8"),), "webhook_timeout_s": 40.0}
    with scheduler(settings.model_copy(update=limits)) as one:
        tick_until(one, lambda: bool(receiver.got), "it came")
    assert given and given[0] <= 20


def test_a_machine_out_of_threads_delivers_later(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Refused(Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    marco("webhooks", "add", receiver.url, "--events", "job.finished")
    solved(settings, database)
    with scheduler(settings) as one:
        with monkeypatch.context() as short:
            short.setattr("worker.sender.Thread", Refused)
            one.tick()
        tick_until(one, lambda: bool(receiver.got), "it came")


def test_the_receivers_certificate_is_checked(
    marco: Marco, settings: Settings, database: Database, receiver: Receiver, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import ssl

    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    marco("webhooks", "add", receiver.url.replace("http:", "https:"), "--events", "job.finished")
    solved(settings, database)
    strict = settings.model_copy(update={"webhook_http": False})
    with scheduler(strict) as one:
        tick_until(one, lambda: bool(held(database)[0].error), "it was refused")
        assert "CERTIFICATE_VERIFY_FAILED" in str(held(database)[0].error)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        tick_until(one, lambda: bool(held(database, state="delivered")), "trusted, it came")
