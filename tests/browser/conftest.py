"""The system's Chromium, and a console over records in memory on a free port.

Every page is watched: an error in its console, a request to another host or a breach of its
policy fails the test.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn

from marco_search.console.access import Access
from marco_search.console.app import create_app
from marco_search.http_server import bound
from tests.records import FakeReader

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """The system's browser; MARCO_CHROMIUM names another."""
    named = os.environ.get("MARCO_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


# Not for the whole session: while Playwright runs, no other test can run an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, started once."""
    program = chromium()
    if program is None:
        pytest.skip(f"no browser on PATH (looked for {', '.join(NAMES)})")
    sync_api = pytest.importorskip("playwright.sync_api")
    try:
        playwright = sync_api.sync_playwright().start()
    except Exception as error:
        pytest.skip(f"Playwright's driver does not start: {error}")
    try:
        try:
            started = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        except sync_api.Error as error:
            pytest.skip(f"{program} does not start: {str(error).splitlines()[0]}")
        yield started
        started.close()
    finally:
        playwright.stop()


@dataclass(frozen=True)
class Running:
    """A console that answers."""

    address: str
    reader: FakeReader


@pytest.fixture(scope="module")
def console() -> Iterator[Running]:
    """One console for all tests; they put records of their own into its reader."""
    reader = FakeReader()
    yield from _served(reader, Access(None))


@pytest.fixture
def locked() -> Iterator[Running]:
    """A console that asks for a token."""
    yield from _served(FakeReader(), Access("a-token-of-enough-characters"))


def _served(reader: FakeReader, access: Access) -> Iterator[Running]:
    listening = bound("127.0.0.1", 0)
    app = create_app(reader, access)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", reader)
    server.should_exit = True
    thread.join(10)
    listening.close()


def until(condition: Callable[[], Any], timeout_s: float = 30) -> None:
    """Wait for a condition."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.02)


class Watched:
    """A page and what went wrong on it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.wrong: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " e => console.error('policy: ' + e.violatedDirective))"
        )

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"{message.type}: {message.text}")

    def check(self) -> None:
        """No errors, and no request to another host."""
        assert self.wrong == []
        assert {urlsplit(url).hostname for url in self.requests} <= {"127.0.0.1", None}


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Makes watched pages: `open_page(url, **options of a context)`."""
    made: list[tuple[Any, Watched]] = []

    def open_one(url: str, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        context.set_default_timeout(60_000)
        watched = Watched(context.new_page())
        made.append((context, watched))
        watched.page.goto(url)
        return watched.page

    yield open_one
    for context, watched in made:
        context.close()
        watched.check()
