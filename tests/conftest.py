"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_ONLY_WHEN_NAMED = {
    "sglang": ("installs 1.6 GB: run make test-sglang", 1500),
    "openai": ("compiles llama.cpp: run make test-openai", 1800),
    "finetune": ("installs PyTorch: run make test-finetune", 1800),
    "containers": ("starts containers: run make test-containers", 900),
}
"""Folders of tests on real servers: why they are skipped, and their limit in seconds when they are
not, since the first of them may install the server.
"""
_WAITING = (
    "integration/test_worker.py",
    "integration/test_vanished.py",
    "integration/runtime/test_openai_servers.py",
    "integration/runtime/test_server_failures.py",
    "integration/runtime/test_sglang_servers.py",
    "integration/runtime/test_odd_replies.py",
)
"""Files of tests that mostly wait, for processes and servers that do not answer; longest first."""

# Where the tests run in the background, Ctrl-C is ignored, and would be in every process that they
# start: those that interrupt one would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Collect from another file on in each process of xdist.

    pytest rewrites each file once for all, but all processes that come to it at the same time do.
    """
    worker = getattr(config, "workerinput", None)
    if worker and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        files = sorted(map(str, HERE.rglob("test_*.py")))
        first = len(files) * int(worker["workerid"][2:]) // worker["workercount"]
        config.args[:] = files[first:] + files[:first]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests on real servers unless their folder is named on the command line.

    The files of those that wait are spread: side by side they would leave processors idle.
    """
    items.sort(key=lambda item: item.path)
    for folder, (reason, limit_s) in _ONLY_WHEN_NAMED.items():
        asked = any(folder in str(argument) for argument in config.invocation_params.args)
        inside = f"{HERE / folder}{os.sep}"
        for item in items:
            if str(item.path).startswith(inside):
                item.add_marker(pytest.mark.timeout(limit_s))
                if not asked:
                    item.add_marker(pytest.mark.skip(reason=reason))
    files = [list(tests) for _, tests in groupby(items, lambda item: item.path)]
    place = {HERE / name: i for i, name in enumerate(_WAITING)}
    waiting = [tests for tests in files if tests[0].path in place]
    waiting.sort(key=lambda tests: place[tests[0].path])
    working = [tests for tests in files if tests[0].path not in place]
    for i, tests in enumerate(waiting):
        working.insert(i * len(files) // (len(waiting) + 1), tests)
    items[:] = chain.from_iterable(working)


# Nearly all that is imported and collected stays: looking for garbage in it is a third of the work.
gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage again, but not among those half a million objects."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def with_hangups() -> Iterator[None]:
    """Children see SIGHUP as at a terminal, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
