"""A caller's verifier: a command or an address that says whether an answer is right.

It gets one JSON object (kind, question, metadata, answer, output, thought), the command on its
standard input, and answers accept, reject or a number from 0 to 1. An answer is verified once in
a search, however many rollouts reach it. Which verifiers there are is the operator's to say
(MARCO_VERIFIERS); a job only names one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from marco_search.scorers.exchange import NoScore, Outcome, Output, Scores, Server, score_all

MOST_OUTPUT = 2**16
"""Bytes that a verifier may write."""
_WORDS = {"accept": 1.0, "reject": 0.0}
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""All that a command gets of ours: the rest holds secrets."""


class Verifier:
    """One verifier over one search; `known` has the scores of answers verified before."""

    def __init__(
        self, target: Server | Sequence[str], timeout_s: float, known: Mapping[str, Scores]
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._known = dict(known)

    def __call__(self, outputs: Sequence[Output]) -> list[Outcome]:
        """For each output one score: 1 accepted, 0 rejected."""
        new = {o.key: o for o in outputs if o.key not in self._known}
        said = dict(zip(new, score_all(self._verify, list(new.values())), strict=True))
        # One that failed is asked again when the answer comes again.
        self._known |= {key: found for key, found in said.items() if isinstance(found, tuple)}
        return [self._known.get(o.key) or said[o.key] for o in outputs]

    def _verify(self, output: Output) -> Scores:
        about = {name: value for name, value in asdict(output).items() if name != "key"}
        body = json.dumps(about, ensure_ascii=False).encode()
        deadline = time.monotonic() + self._timeout_s
        if not isinstance(self._target, Server):
            return (verdict(run(self._target, body, deadline)),)
        status, data = self._target.post(body, deadline, MOST_OUTPUT)
        if status != 200:
            raise NoScore(f"it answered {status}")
        return (verdict(data),)


def verdict(data: bytes) -> float:
    """The number that a verifier's answer stands for: a word, a number, or either as JSON."""
    text = data.decode(errors="replace").strip()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    if isinstance(said, dict):
        said = said.get("verdict")
    number = _WORDS.get(said.lower()) if isinstance(said, str) else said
    if not isinstance(number, int | float) or not 0.0 <= number <= 1.0:
        raise NoScore(f"it said {text[:40]!r}, not accept, reject or a number from 0 to 1")
    return float(number)


def run(command: Sequence[str], given: bytes, deadline: float) -> bytes:
    """What a command writes, given this on its standard input. Raises NoScore.

    No shell. It is killed with all of its process group, at the deadline and when it has ended.
    """
    with tempfile.TemporaryFile() as source:
        source.write(given)
        source.seek(0)
        try:
            process = subprocess.Popen(
                command,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,
            )
        except OSError as error:
            raise NoScore(f"it can't be run: {error.strerror}") from None
    try:
        written = _written(process, deadline)
    finally:
        # Before it is waited for: until then no other process can have its number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()
    if process.returncode != 0:
        raise NoScore(f"it exited with {process.returncode}")
    return written


def _written(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """All that it writes until it ends; a child that it leaves behind is not waited for."""
    assert process.stdout
    out, written = process.stdout.fileno(), b""
    os.set_blocking(out, False)
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(out, select.POLLIN)
        over = False
        while not over:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NoScore("no answer in time")
            events = [fd for fd, _ in poll.poll(left * 1000)]
            over = ended in events
            if out in events or over:
                part = _read(out)
                written += part
                if not part and not over:
                    poll.unregister(out)  # it closed its output and runs on
            if len(written) > MOST_OUTPUT:
                raise NoScore(f"it wrote more than {MOST_OUTPUT >> 10} KiB")
        return written
    finally:
        os.close(ended)


def _read(out: int) -> bytes:
    """What there is, of a little more than is allowed."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while len(found) <= MOST_OUTPUT and (part := os.read(out, MOST_OUTPUT)):
            found += part
    return found
