"""The reward "service": values from a reward model behind HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from marco_search import settings
from marco_search.engine import solve
from marco_search.errors import InvalidSettings, RuntimeUnavailable
from tests.toy import ToyRuntime


class RewardModel(BaseHTTPRequestHandler):
    """Likes the answer 2; `reply` replaces what it says."""

    reply: bytes | None = None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rewards = [
            0.9 if "\n2\n" in text.partition("</Thought>")[2] else 0.1 for text in body["texts"]
        ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.reply or json.dumps({"rewards": rewards}).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), RewardModel) as http:
        thread = Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("MARCO_REWARD_URL", f"http://127.0.0.1:{http.server_port}/")
        settings.load.cache_clear()
        yield
        http.shutdown()
        thread.join()
    settings.load.cache_clear()


@pytest.mark.usefixtures("server")
def test_the_service_decides_which_answer_is_best() -> None:
    runtime = ToyRuntime(answers=("1", "1", "1", "2"))
    result = solve("1 + 1?", runtime=runtime, strategy="best-of-n", rollouts=16, value="service")
    assert result.answer is not None
    assert result.answer.text == "2"
    assert result.answer.confidence == pytest.approx(0.9)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("reply", [b"{}", b"[", b'{"rewards": [7]}', b'{"rewards": []}'])
def test_what_the_service_should_not_say_is_an_error_that_may_pass(
    reply: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewardModel, "reply", reply)
    with pytest.raises(RuntimeUnavailable, match="MARCO_REWARD_URL"):
        solve("1 + 1?", runtime=ToyRuntime(), rollouts=1, value="service")


def test_without_its_address_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARCO_REWARD_URL", raising=False)
    settings.load.cache_clear()
    with pytest.raises(InvalidSettings, match="MARCO_REWARD_URL: not set"):
        solve("1 + 1?", runtime=ToyRuntime(), rollouts=4, value="service")
