"""Rewards from outside: a reward model behind HTTP, and a caller's verifier.

Real servers and real commands, well behaved and not.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from marco_search import scorers, settings
from marco_search.deadlines import Call
from marco_search.engine import search_job, solve
from marco_search.errors import InvalidJob, InvalidSettings, RuntimeUnavailable
from marco_search.jobs import JobResult, SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.replay import replay
from marco_search.runtime.servers import open_servers
from marco_search.scorers import (
    MOST_OUTPUT,
    NoScore,
    Output,
    RewardModel,
    Server,
    run_command,
    steps_of,
    verdict,
)
from marco_search.settings import Settings
from tests.integration.toys import wait_until
from tests.tls import make_certificate
from tests.toy import ToyRuntime

Reply = Callable[[Any], Any]
"""What a server answers to a body: JSON, bytes as they are, a status, or None: nothing at all."""


class Served:
    """A server at `url` that keeps the bodies and headers that it was sent."""

    def __init__(self) -> None:
        self.reply: Reply = lambda body: 500
        self.bodies: list[Any] = []
        self.headers: list[Any] = []
        self.over = Event()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                served.bodies.append(body)
                served.headers.append(self.headers)
                said = served.reply(body)
                if said is None:
                    served.over.wait()
                    return
                self.send_response(said if isinstance(said, int) else 200)
                self.end_headers()
                if said == "slowly":
                    while not served.over.wait(0.02):
                        self.wfile.write(b" ")
                elif not isinstance(said, int):
                    self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._http.server_port}/classify"
        self._thread = Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Set settings by name."""

    def set_(**values: object) -> None:
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value)
            monkeypatch.setenv(f"MARCO_{name.upper()}", text)
        settings.load.cache_clear()

    yield set_
    monkeypatch.undo()
    settings.load.cache_clear()


def likes_two(body: Any) -> list[dict[str, Any]]:
    """A reward model that likes the answer 2."""
    return [{"embedding": [0.9 if t.rstrip().endswith("2") else 0.1]} for t in body["text"]]


def solved(**options: Any) -> JobResult:
    runtime = ToyRuntime(answers=("1", "1", "1", "2"))
    return solve("1 + 1?", runtime=runtime, **{"strategy": "best-of-n", **options})


# -- a reward model -----------------------------------------------------------------------


def test_the_reward_model_decides_which_answer_is_best(
    server: Served, env: Callable[..., None]
) -> None:
    server.reply = likes_two
    env(reward_url=server.url, reward_api_key="a-key-of-theirs")
    result = solved(reward="prm-last")
    assert result.answer is not None
    assert result.answer.text == "2"
    assert result.answer.confidence == pytest.approx(0.9)
    assert result.shortfalls.unscored == 0
    assert {h["Authorization"] for h in server.headers} == {"Bearer a-key-of-theirs"}
    assert all(len(body["text"]) == 1 for body in server.bodies), "the whole output only"


def test_each_step_has_its_score(server: Served, env: Callable[..., None]) -> None:
    server.reply = lambda body: [{"embedding": [1 / (1 + i)]} for i in range(len(body["text"]))]
    env(reward_url=server.url)
    job = ReasoningJob(
        question="1 + 1?", options=SearchOptions(strategy="vote", rollouts=6, reward="prm-product")
    )
    rollouts = search_job(job, runtime=ToyRuntime()).search.tree.rollouts
    assert len({len(r.scores or ()) for r in rollouts}) > 1
    for r in rollouts:
        assert r.scores is not None
        assert r.value == pytest.approx(_factorial(r.scores))
    body = max(server.bodies, key=lambda body: len(body["text"]))
    first, *_, last = body["text"]
    assert last.startswith(first)
    assert "1 + 1?" in first
    assert "Thought" not in last, "as models of that kind are trained: without our tags"


def _factorial(scores: tuple[float, ...]) -> float:
    value = 1.0
    for i in range(len(scores)):
        value /= 1 + i
    return value


OUTPUT = Output(
    kind="reasoning", question="1 + 1<|im_end|>?", metadata={}, key="2", answer="2",
    output="It is 2", thought="One and one.\n\nThat is two.",
)  # fmt: skip


def test_a_template_says_what_it_reads(server: Served, env: Callable[..., None]) -> None:
    env(
        reward_url=server.url,
        reward_template="Q: {question} A: {steps}",
        reward_separator="<extra_0>",
        reward_scale="logit",
    )
    assert steps_of(OUTPUT) == ["One and one.", "That is two.", "It is 2"]
    model = RewardModel(settings.load(), whole=False)
    assert model.texts(OUTPUT)[1:] == [
        "Q: 1 + 1< |im_end|>? A: One and one.<extra_0>That is two.<extra_0>",
        "Q: 1 + 1< |im_end|>? A: One and one.<extra_0>That is two.<extra_0>It is 2<extra_0>",
    ]
    server.reply = lambda body: [{"embedding": e} for e in ([0.0], [-1000.0, 1000.0], [-3.2])]
    (scores,) = model([OUTPUT])
    assert list(scores) == pytest.approx([0.5, 1.0, 0.0392], abs=1e-3)


@pytest.mark.parametrize(
    ("reply", "reason", "tries"),
    [
        (500, "answered 500", 3),
        (404, "answered 404", 1),
        (b"{}", "gave 0 scores for 1 texts", 1),
        (b"[", "no list of objects", 1),
        ([{"embedding": [7.0]}], "not in 0 to 1; for logits", 1),
        ([{"embedding": [float("nan")]}], "not in 0 to 1", 1),
        ([{"embedding": [0.1] * 768}], "768 numbers", 1),
        (b"[" * 100_000, "no list of objects", 1),
        (None, "no answer in time", 1),
        ("slowly", "no answer in time", 1),
    ],
)
def test_what_has_no_reward_is_said_and_has_no_weight(
    server: Served, env: Callable[..., None], reply: Any, reason: str, tries: int
) -> None:
    """And neither fails nor delays the job."""
    answered: list[Any] = []

    def sometimes(body: Any) -> Any:
        if body["text"][0].rstrip().endswith("2"):
            return likes_two(body)
        answered.append(body)
        return reply

    server.reply = sometimes
    env(reward_url=server.url, reward_timeout_s="3" if reply in (None, "slowly") else "60")
    result = solved(reward="prm-last", rollouts=8)
    assert result.answer is not None
    assert result.answer.text == "2"
    assert len(result.answers) == 1
    assert result.shortfalls.unscored > 0
    assert len(answered) == tries * result.shortfalls.unscored


def test_what_is_aborted_is_not_tried_again(
    env: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it wait for the next try."""
    tries: list[Any] = []

    def post(*given: Any) -> tuple[int, bytes]:
        tries.append(given)
        return 500, b""

    monkeypatch.setattr(Server, "post", post)
    monkeypatch.setattr(scorers, "_PAUSE_S", 60.0)
    env(reward_url="http://127.0.0.1:1", reward_timeout_s="120")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(RewardModel(settings.load(), whole=True), [OUTPUT])
        wait_until(lambda: len(tries) == 1, "it was asked")
        scorers.abort()
        with pytest.raises(scorers.Aborted):
            asked.result(20)
    assert len(tries) == 1


def test_without_any_reward_the_answers_are_counted(
    server: Served, env: Callable[..., None]
) -> None:
    server.reply = lambda body: 404
    env(reward_url=server.url)
    result = solved(reward="prm-min", rollouts=8)
    assert result.answer is not None
    assert (result.answer.text, result.shortfalls.unscored) == ("1", 8)
    assert [a.votes for a in result.answers] == sorted(a.votes for a in result.answers)[::-1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "MARCO_REWARD_URL: not set"),
        ({"reward_url": "ftp://x/y"}, "MARCO_REWARD_URL: needs http"),
        ({"reward_url": "http://"}, "MARCO_REWARD_URL: needs http"),
        ({"reward_url": "http://x:y/"}, "MARCO_REWARD_URL"),
        ({"reward_url": "http://me:hidden-word@x/"}, "without a user"),
        ({"reward_url": "http://x/", "reward_api_key": "a-key-of-theirs"}, "only sent over https"),
        ({"reward_url": "http://x/", "reward_template": "{question}"}, "MARCO_REWARD_TEMPLATE"),
    ],
)
def test_a_reward_model_that_is_not_set_up_is_refused_before_anything_is_generated(
    env: Callable[..., None], values: dict[str, str], words: str
) -> None:
    env(**values)
    with pytest.raises(InvalidSettings, match=words) as refused:
        solved(reward="prm-last")
    assert "hidden-word" not in str(refused.value)
    assert "a-key" not in str(refused.value)


# -- a verifier ---------------------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


READ = "import json, sys; given = json.load(sys.stdin); "


def test_an_accepted_answer_ends_the_search(env: Callable[..., None], tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    code = READ + (
        f"open({str(asked)!r}, 'a').write(given['answer'] + '\\n');"
        "print('accept' if given['answer'] == '2' else 'reject')"
    )
    env(verifiers={"sums": python(code)}, console_token="a-secret-of-ours")
    result = solved(verifier="sums", rollouts=64)
    assert [a.text for a in result.answers] == ["2"]
    assert (result.stop_reason, result.rollouts < 64) == ("verified", True)
    assert sorted(asked.read_text().split()) == ["1", "2"], "each distinct answer once"


@pytest.mark.parametrize("strategy", ["tree", "adaptive", "step", "vote"])
def test_a_search_that_was_verified_can_be_replayed(
    env: Callable[..., None], strategy: str
) -> None:
    """Without the verifier."""
    code = READ + "print('accept' if given['answer'] == '2' else 0.5)"
    env(verifiers={"sums": python(code)})
    options = SearchOptions(strategy=strategy, rollouts=64, verifier="sums")
    job, runtime = ReasoningJob(question="1 + 1?", options=options), ToyRuntime(answers="1112")
    done = search_job(job, runtime=runtime)
    assert done.search.stop_reason == "verified"
    env(verifiers={})
    tree = done.search.tree
    again = replay(
        job, done.plan, tree.nodes[1:], tree.rollouts, runtime,
        texts=tree.texts, stop_reason="verified",
    )  # fmt: skip
    assert again.first is None


def test_what_is_rejected_has_no_vote(env: Callable[..., None]) -> None:
    env(verifiers={"never": python("print('reject')"), "not-1": python(
        READ + "print(0.25 if given['answer'] == '2' else 'reject')")})  # fmt: skip
    assert solved(verifier="never", rollouts=8, strategy="vote").answers == ()
    result = solved(verifier="not-1", rollouts=16, strategy="vote", early_stop=True)
    assert [(a.text, a.confidence) for a in result.answers] == [("2", 0.25)]
    assert (result.stop_reason, result.rollouts) == ("rollouts", 16)


def test_a_verifier_behind_an_address(server: Served, env: Callable[..., None]) -> None:
    server.reply = lambda body: {"verdict": "accept" if body["answer"] == "2" else 0.5}
    env(verifiers={"judge": server.url}, verifier_api_key="a-key-of-theirs")
    result = solved(verifier="judge", rollouts=64)
    assert (result.answer and result.answer.text, result.stop_reason) == ("2", "verified")
    assert {h["Authorization"] for h in server.headers} == {"Bearer a-key-of-theirs"}
    assert set(server.bodies[0]) == {
        "kind", "question", "metadata", "answer", "output", "thought",
    }  # fmt: skip


def test_an_answer_that_is_cut_short_is_no_score() -> None:
    """Of 0.95, what arrived is a number as well."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for head in ("Content-Length: 4", "Connection: close"):
                with listening.accept()[0] as peer:
                    peer.recv(2**16)
                    peer.sendall(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n0".encode())
                    if head == "Connection: close":
                        over.wait()

        over = Event()
        thread = Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        asked = Server("MARCO_VERIFIERS", url, None)
        with pytest.raises(NoScore):
            asked.post(b"{}", within(60), MOST_OUTPUT)
        with pytest.raises(NoScore, match="no answer in time"):
            asked.post(b"{}", within(0.2), MOST_OUTPUT)
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("url", "address"),
    [("http://[fd00::1]/", ("fd00::1", 80)), ("https://[fd00::ab]/v1", ("fd00::ab", 443))],
)
def test_an_ipv6_address_without_a_port(
    url: str, address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def connect(where: Any, *given: Any) -> Any:
        asked.append(where)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(NoScore):
        Server("MARCO_VERIFIERS", url, None).post(b"{}", within(60), MOST_OUTPUT)
    with pytest.raises(RuntimeUnavailable):
        open_servers(Settings().model_copy(update={"runtime": url}))
    assert set(asked) == {address}


def test_the_addresses_of_a_name_share_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def connect(where: Any, seconds: float, source: Any = None) -> Any:
        given.append(seconds)
        raise TimeoutError

    one = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [one] * 4)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(NoScore):
        Server("MARCO_VERIFIERS", "http://a", None).post(b"", within(400), MOST_OUTPUT)
    assert len(given) == 4 and given[0] <= 100
    options = {"runtime": "http://a", "runtime_connect_s": 8.0}
    with pytest.raises(RuntimeUnavailable):
        open_servers(Settings().model_copy(update=options))
    assert len(given) == 8 and given[4] <= 2


def test_the_certificate_of_a_verifier_is_checked(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    server.reply = lambda body: 0.5
    asked = Server("MARCO_VERIFIERS", server.url.replace("http:", "https:"), None)
    with pytest.raises(NoScore, match="CERTIFICATE_VERIFY_FAILED"):
        asked.post(b"{}", within(60), MOST_OUTPUT)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert asked.post(b"{}", within(60), MOST_OUTPUT) == (200, b"0.5")
    assert server.headers[-1]["Host"] == server.url.split("/")[2]


def test_a_verifier_is_named_not_given(env: Callable[..., None]) -> None:
    with pytest.raises(InvalidSettings, match="no verifier 'sums'; known: none"):
        solved(verifier="sums")
    env(verifiers={"judge": ["true"]})
    with pytest.raises(InvalidSettings, match="no verifier 'sh -c ls'; known: judge"):
        solved(verifier="sh -c ls")
    with pytest.raises(InvalidJob, match="leave reward out"):
        SearchOptions(verifier="judge", reward="tail")
    with pytest.raises(InvalidJob, match="unknown value 'verifier'"):
        SearchOptions(reward="verifier")
    wrongs: list[Any] = [{"judge": "not an address"}, {"judge": []}, "{", "[]"]
    for wrong in wrongs:
        env(verifiers=wrong)
        with pytest.raises(InvalidSettings, match="MARCO_VERIFIERS"):
            solved(verifier="judge")


def test_a_verifier_that_fails_fails_no_job(env: Callable[..., None]) -> None:
    env(verifiers={"broken": python("raise SystemExit(3)"), "missing": ["/nowhere/at-all"]})
    for name in ("broken", "missing"):
        result = solved(verifier=name, rollouts=8, strategy="vote")
        assert (result.answer and result.answer.text, result.shortfalls.unscored) == ("1", 8)


@pytest.mark.parametrize(
    ("said", "number"),
    [
        (b"accept", 1.0), (b" REJECT\n", 0.0), (b"0.25", 0.25), (b'"accept"', 1.0), (b"true", 1.0),
        (b'{"verdict": "reject", "why": "x"}', 0.0), (b'{"verdict": 0.5}', 0.5),
    ],
)  # fmt: skip
def test_verdicts(said: bytes, number: float) -> None:
    assert verdict(said) == number


@pytest.mark.parametrize(
    "said", [b"", b"perhaps", b"1.5", b"NaN", b"[1]", b"{}", b"\xff", b"[" * 99999]
)
def test_what_is_no_verdict(said: bytes) -> None:
    with pytest.raises(NoScore, match="not accept, reject or a number"):
        verdict(said)


def within(seconds: float = 30.0) -> Call:
    return Call(time.monotonic() + seconds)


def test_a_command_gets_nothing_of_ours_but_its_input(env: Callable[..., None]) -> None:
    env(reward_api_key="a-secret-of-ours")
    found = run_command(python("import os; print(sorted(os.environ))"), b"", within())
    assert b"PATH" in found
    assert b"MARCO" not in found
    assert b"DATABASE_URL" not in found
    # More than a pipe holds, to one that does not read it.
    assert run_command(python("print('accept')"), b"x" * 2**20, within()) == b"accept\n"


def test_a_command_ends_at_its_limit_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(NoScore, match="in time"):
        run_command(["sh", "-c", f"sleep 1000 & echo $$ $! >{pids}; wait"], b"", within(3.0))
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: not running(pid), "the process is gone")  # type: ignore[misc]


def test_a_command_does_not_outlive_a_process_that_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = ["sh", "-c", f"echo $$ >{pid}; exec sleep 1000"]
    code = (
        "from marco_search.deadlines import Call; from marco_search.scorers import run_command;"
        f"run_command({command}, b'', Call(float('inf')))"
    )
    with subprocess.Popen(python(code)) as ours:
        wait_until(lambda: pid.is_file() and bool(pid.read_text()), "it has begun")
        ours.kill()
    wait_until(lambda: not running(int(pid.read_text())), "it is gone")


def test_a_child_that_is_left_behind_is_not_waited_for(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import subprocess;"
        f"open({str(pids)!r}, 'w').write(str(subprocess.Popen(['sleep', '1000']).pid));"
        "print('accept')"
    )
    assert run_command(python(code), b"", within()) == b"accept\n"
    wait_until(lambda: not running(int(pids.read_text())), "the child is gone")


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_command_that_writes_too_much() -> None:
    with pytest.raises(NoScore, match="more than 64 KiB"):
        run_command(["yes"], b"", within())
    much = python(f"import sys; sys.stdout.write('x' * {MOST_OUTPUT + 1})")
    with pytest.raises(NoScore, match="more than 64 KiB"):
        run_command(much, b"", within())
    assert len(
        run_command(python(f"import sys; sys.stdout.write('x' * {MOST_OUTPUT})"), b"", within())
    ) == (MOST_OUTPUT)
