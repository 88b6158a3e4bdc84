"""Scores from outside: a process reward model, or a caller's verifier.

The engine asks for them before it passes a round's branches to the search, which does no I/O and
only has the formulas over them (`marco_search.search.rewards`). A scorer never fails: what has no
score says why, is stored so, and has no weight in the vote. A round waits for a reward model at
most MARCO_REWARD_TIMEOUT_S, for a verifier MARCO_VERIFIER_TIMEOUT_S for each eight new answers.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from marco_search import settings as settings_module
from marco_search.deadlines import Call, port_of, posted
from marco_search.errors import InvalidSettings, NotOffered
from marco_search.forks import ending_with
from marco_search.runtime.base import strip_control_tokens
from marco_search.search.config import SearchConfig
from marco_search.search.rewards import EXTERNAL
from marco_search.search.tree import Rollout
from marco_search.settings import Settings
from marco_search.text import one_line, redacted

log = logging.getLogger(__name__)
T = TypeVar("T")

AT_ONCE = 8
"""Requests, or commands, of one search at the same time."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LONGEST_REASON = 200  # characters
_CHATML = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{steps}"
_TRIES = 3  # of a request to a reward model
_PAUSE_S = 0.5  # before the second try; twice that before the third
_LARGEST = 2**22  # bytes of an answer
_PASSING = (408, 429, 500, 502, 503, 504)
MOST_OUTPUT = 2**16
"""Bytes that a verifier may write."""
_POLL_S = 0.25  # whether a command is to be ended
_WORDS = {"accept": 1.0, "reject": 0.0}
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""All that a command gets of ours: the rest holds secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A finished rollout with an answer. Never holds the expected answer."""

    kind: str  #: of job
    question: str  #: the user's turn
    metadata: Mapping[str, Any]  #: the caller's
    key: str  #: of the answer: answers with equal keys are the same
    answer: str  #: as a reader should see it
    output: str  #: the part that it stands in
    thought: str


Scores = tuple[float, ...]
"""Numbers in [0, 1]: one for each step, or one for the answer."""
Outcome = Scores | str
"""Scores, or why there are none."""
Scorer = Callable[[Sequence[Output]], Sequence[Outcome]]
"""Outputs with an answer -> for each its scores, or why it has none."""


class NoScore(Exception):
    """Why there is no score, in words fit to be stored: short, one line, without secrets."""

    def __init__(self, reason: str) -> None:
        text = one_line(redacted(reason))
        super().__init__(text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}...")


class Aborted(BaseException):
    """`abort` ended what was asked: there is no point in the rest of the round."""


def score_all(score: Callable[[T], Scores], items: Sequence[T]) -> list[Outcome]:
    """The outcome of each item, several at once. `score` raises NoScore."""

    def outcome(item: T) -> Outcome:
        try:
            return score(item)
        except NoScore as error:
            return str(error)
        except Exception as error:
            log.exception("a score failed")
            return str(NoScore(f"{type(error).__name__}: {error}"))

    if not items:
        return []
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as pool:
        return list(pool.map(outcome, items))


_calls: set[Call] = set()  # in progress


@contextlib.contextmanager
def _asking(deadline: float) -> Iterator[Call]:
    """A call until then (of time.monotonic()), unless `abort` ends it."""
    call = Call(deadline)
    _calls.add(call)
    try:
        yield call
    finally:
        _calls.discard(call)


def abort() -> None:
    """End at once what this process asks for now: its scorers raise Aborted."""
    for call in list(_calls):
        call.cancel()


def _late(call: Call) -> BaseException:
    return Aborted() if call.cancelled else NoScore("no answer in time")


class Server:
    """An address that JSON is posted to."""

    def __init__(self, variable: str, url: str, key: SecretStr | None) -> None:
        """Raises InvalidSettings, naming the variable, for an address that can't be used."""
        try:
            self._parts = parts = urlsplit(url)
            port_of(parts)
        except ValueError:
            raise InvalidSettings(f"{variable}: not an address") from None
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        secret = key.get_secret_value().strip() if key else ""
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise InvalidSettings(
                f"{variable}: needs http:// or https:// and a host, without a user; a key goes "
                "into MARCO_REWARD_API_KEY or MARCO_VERIFIER_API_KEY"
            )
        if secret and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise InvalidSettings(f"{variable}: a key is only sent over https://")
        if secret and not (secret.isascii() and secret.isprintable()):
            raise InvalidSettings(f"{variable}: its key has characters that no header can hold")
        if secret:
            self._headers["Authorization"] = f"Bearer {secret}"

    def post(self, body: bytes, call: Call, most: int) -> tuple[int, bytes]:
        """Status and answer, of at most `most` bytes. Raises NoScore, also when `call` is over."""
        try:
            with posted(self._parts, body, self._headers, call) as response:
                found = response.read(most + 1)
                # `read` does not say that bytes are missing: of 0.95 it returns 0.
                if len(found) <= most and (response.length or call.over):
                    raise http.client.IncompleteRead(b"")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise (_late(call) if call.over else NoScore(str(error) or repr(error))) from None
        if len(found) > most:
            raise NoScore(f"the answer is larger than {most >> 10:,} KiB")
        return response.status, found


class RewardModel:
    """A process reward model at MARCO_REWARD_URL: a score for each step of a thought.

    Asked as SGLang serves reward models (`--is-embedding`, POST /classify, see docs/rewards.md):

        {"text": [TEXT, ...]}  ->  [{"embedding": [SCORE]}, ...]

    Each text ends after a step, so that the score at its last token is that step's; the server has
    the common beginnings in its prefix cache. A rollout is one request: what one of them can't be
    scored for costs no other its score. With `whole` only the whole output is scored.
    """

    def __init__(self, settings: Settings, *, whole: bool) -> None:
        """Raises InvalidSettings, NotOffered if there is no address."""
        if settings.reward_url is None:
            raise NotOffered(
                "MARCO_REWARD_URL: not set; rewards prm-* need the address of a reward model, "
                "such as http://127.0.0.1:30001/classify"
            )
        self._server = Server(
            "MARCO_REWARD_URL", settings.reward_url.get_secret_value(), settings.reward_api_key
        )
        self._timeout_s = settings.reward_timeout_s
        self._template = settings.reward_template or _CHATML
        self._separator = settings.reward_separator or "\n"
        self._logits = settings.reward_scale == "logit"
        self._whole = whole

    def __call__(self, outputs: Sequence[Output]) -> list[Outcome]:
        """The scores of each output, one for each step."""
        deadline = time.monotonic() + self._timeout_s

        def scores(output: Output) -> Scores:
            with _asking(deadline) as call:
                return self._scores(self.texts(output), call)

        return score_all(scores, outputs)

    def texts(self, output: Output) -> list[str]:
        """What is scored: the question and the steps so far, for each step."""
        steps = [strip_control_tokens(step) for step in steps_of(output)]
        before, _, after = self._template.partition("{steps}")
        before = before.replace("{question}", strip_control_tokens(output.question))
        ends = range(len(steps) if self._whole else 1, len(steps) + 1)
        joined = ["".join(step + self._separator for step in steps[:end]) for end in ends]
        return [before + text + after for text in joined]

    def _scores(self, texts: list[str], call: Call) -> Scores:
        body = json.dumps({"text": texts}).encode()
        for again in range(_TRIES):
            try:
                status, data = self._server.post(body, call, _LARGEST)
            except NoScore as error:
                failure, passes = error, True
            else:
                if status == 200:
                    return self._read(data, len(texts))
                failure, passes = NoScore(f"it answered {status}"), status in _PASSING
            if not passes or again + 1 == _TRIES or not call.wait(_PAUSE_S * 2**again):
                break
        raise Aborted if call.cancelled else failure

    def _read(self, data: bytes, count: int) -> Scores:
        try:
            rows = json.loads(data)
            scores = tuple(self._score(row["embedding"]) for row in rows)
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            raise NoScore("its answer is not a list of objects with an embedding") from None
        if len(scores) != count:
            raise NoScore(f"it gave {len(scores)} scores for {count} texts")
        if not all(0.0 <= score <= 1.0 for score in scores):
            raise NoScore("a score is not in 0 to 1; for logits set MARCO_REWARD_SCALE=logit")
        return scores

    def _score(self, embedding: Any) -> float:
        """One number is the score; of two, those of a classifier, the second is a good step's."""
        bad, good = (0.0, *map(float, embedding))[-2:]
        if not 1 <= len(embedding) <= 2:
            raise NoScore(
                f"{len(embedding)} numbers per text are not a score: is it a reward model?"
            )
        return 0.5 * (1.0 + math.tanh((good - bad) / 2.0)) if self._logits else good


def steps_of(output: Output) -> list[str]:
    """The lines of the thought, and the output."""
    lines = [line.strip() for line in output.thought.splitlines()]
    return [*filter(None, lines), output.output]


class Verifier:
    """A caller's verifier over one search: a command or an address that says what is right.

    It gets one JSON object (kind, question, metadata, answer, output, thought), the command on its
    standard input, and answers accept, reject or a number from 0 to 1. An answer is verified once
    in a search, however many rollouts reach it; `known` has the scores of those verified before.
    Which verifiers there are is the operator's to say (MARCO_VERIFIERS); a job only names one.
    """

    def __init__(
        self, target: Server | Sequence[str], timeout_s: float, known: Mapping[str, Scores]
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._known = dict(known)

    def __call__(self, outputs: Sequence[Output]) -> list[Outcome]:
        """For each output one score: 1 accepted, 0 rejected."""
        new = {o.key: o for o in outputs if o.key not in self._known}
        scored = dict(zip(new, score_all(self._verify, list(new.values())), strict=True))
        # One that failed is asked again when the answer comes again.
        self._known |= {key: found for key, found in scored.items() if isinstance(found, tuple)}
        return [self._known.get(o.key) or scored[o.key] for o in outputs]

    def _verify(self, output: Output) -> Scores:
        about = {name: value for name, value in asdict(output).items() if name != "key"}
        body = json.dumps(about, ensure_ascii=False).encode()
        with _asking(time.monotonic() + self._timeout_s) as call:
            if not isinstance(self._target, Server):
                return (verdict(run_command(self._target, body, call)),)
            status, data = self._target.post(body, call, MOST_OUTPUT)
        if status != 200:
            raise NoScore(f"it answered {status}")
        return (verdict(data),)


def verdict(data: bytes) -> float:
    """The number that a verifier's answer stands for: a word, a number, or either as JSON."""
    text = data.decode(errors="replace").strip()
    try:
        verdict = json.loads(text)
    except (ValueError, RecursionError):
        verdict = text
    if isinstance(verdict, dict):
        verdict = verdict.get("verdict")
    number = _WORDS.get(verdict.lower()) if isinstance(verdict, str) else verdict
    if not isinstance(number, int | float) or not 0.0 <= number <= 1.0:
        raise NoScore(f"it printed {text[:40]!r}, not accept, reject or a number from 0 to 1")
    return float(number)


def run_command(command: Sequence[str], given: bytes, call: Call) -> bytes:
    """What a command writes, given this on its standard input. Raises NoScore.

    No shell. It is killed with all of its process group, when `call` is over and when it has ended;
    by itself, when this process is killed.
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
                preexec_fn=ending_with(os.getpid(), signal.SIGKILL),
            )
        except OSError as error:
            raise NoScore(f"it can't be run: {error.strerror}") from None
    try:
        written = _written(process, call)
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


def _written(process: subprocess.Popen[bytes], call: Call) -> bytes:
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
            if call.over:
                raise _late(call)
            events = [fd for fd, _ in poll.poll(min(call.timeout_s, _POLL_S) * 1000)]
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


def open_scorer(config: SearchConfig, earlier: Iterable[Rollout] = ()) -> Scorer | None:
    """What scores the rollouts of a search; None: its reward needs nothing from outside.

    `earlier` are those that it has: their answers are not verified again. Raises NotOffered
    if the reward model or the verifier is not set up here, InvalidSettings if wrongly.
    """
    if config.reward not in EXTERNAL:
        return None
    settings = settings_module.load()
    if config.verifier is None:
        return guarded(RewardModel(settings, whole=config.reward == "prm-last"), "reward model")
    target = settings.verifiers.get(config.verifier)
    if target is None:
        known = ", ".join(settings.verifiers) or "none"
        raise NotOffered(f"MARCO_VERIFIERS: no verifier {config.verifier!r}; known: {known}")
    server = None
    if isinstance(target, str):
        server = Server("MARCO_VERIFIERS", target, settings.verifier_api_key)
    known_scores = {str(r.answer): r.scores for r in earlier if r.answer and r.scores}
    verifier = Verifier(server or target, settings.verifier_timeout_s, known_scores)
    return guarded(verifier, f"verifier {config.verifier}")


def guarded(scorer: Scorer, name: str) -> Scorer:
    """The scorer, whose failures say its name and are logged; an exception is one, too."""

    def outcomes(outputs: Sequence[Output]) -> list[Outcome]:
        try:
            found = list(scorer(outputs))
            if len(found) != len(outputs):
                raise ValueError(f"{len(found)} outcomes for {len(outputs)} outputs")
        except Exception as error:
            log.exception("the %s failed", name)
            return [str(NoScore(f"{type(error).__name__}: {error}"))] * len(outputs)
        return [_sound(outcome) for outcome in found]

    def scored(outputs: Sequence[Output]) -> Sequence[Outcome]:
        found = [s if isinstance(s, tuple) else f"{name}: {s}" for s in outcomes(outputs)]
        failures = [s for s in found if isinstance(s, str)]
        if failures:
            log.warning("no scores for %d of %d: %s", len(failures), len(found), failures[0])
        return found

    return scored


def _sound(outcome: Outcome) -> Outcome:
    if isinstance(outcome, str):
        return str(NoScore(outcome))
    try:
        scores = tuple(map(float, outcome))
    except (TypeError, ValueError):
        return str(NoScore(f"{outcome!r} is neither scores nor a reason"))
    return scores if all(0.0 <= s <= 1.0 for s in scores) else "a score is not in 0 to 1"
