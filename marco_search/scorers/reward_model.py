"""A process reward model behind HTTP: a score for each step of a thought.

Asked as SGLang serves reward models (`--is-embedding`, POST /classify, see docs/rewards.md):

    {"text": [TEXT, ...]}  ->  [{"embedding": [SCORE]}, ...]

Each text ends after a step, so that the score at its last token is that step's; the server has
the common beginnings in its prefix cache. A rollout is one request: what one of them can't be
scored for costs no other its score.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

from marco_search.errors import InvalidSettings
from marco_search.runtime.base import strip_control_tokens
from marco_search.scorers.exchange import NoScore, Outcome, Output, Scores, Server, score_all
from marco_search.settings import Settings

_CHATML = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{steps}"
_TRIES = 3
_PAUSE_S = 0.5  # before the second try; twice that before the third
_LARGEST = 2**22  # bytes of an answer
_PASSING = (408, 429, 500, 502, 503, 504)


class RewardModel:
    """The model at MARCO_REWARD_URL. With `whole` only the whole output is scored."""

    def __init__(self, settings: Settings, *, whole: bool) -> None:
        """Raises InvalidSettings."""
        if settings.reward_url is None:
            raise InvalidSettings(
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
        return score_all(lambda output: self._scores(self.texts(output), deadline), outputs)

    def texts(self, output: Output) -> list[str]:
        """What is scored: the question and the steps so far, for each step."""
        steps = [strip_control_tokens(step) for step in steps_of(output)]
        before, _, after = self._template.partition("{steps}")
        before = before.replace("{question}", strip_control_tokens(output.question))
        ends = range(len(steps) if self._whole else 1, len(steps) + 1)
        joined = ["".join(step + self._separator for step in steps[:end]) for end in ends]
        return [before + text + after for text in joined]

    def _scores(self, texts: list[str], deadline: float) -> Scores:
        body = json.dumps({"text": texts}).encode()
        for again in range(_TRIES):
            try:
                status, data = self._server.post(body, deadline, _LARGEST)
            except NoScore as error:
                failure, passes = error, True
            else:
                if status == 200:
                    return self._read(data, len(texts))
                failure, passes = NoScore(f"it answered {status}"), status in _PASSING
            pause_s = _PAUSE_S * 2**again
            if not passes or again + 1 == _TRIES or time.monotonic() + pause_s >= deadline:
                break
            time.sleep(pause_s)
        raise failure

    def _read(self, data: bytes, count: int) -> Scores:
        try:
            rows = json.loads(data)
            scores = tuple(self._score(row["embedding"]) for row in rows)
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            raise NoScore("its answer is no list of objects with an embedding") from None
        if len(scores) != count:
            raise NoScore(f"it gave {len(scores)} scores for {count} texts")
        if not all(0.0 <= score <= 1.0 for score in scores):
            raise NoScore("a score is not in 0 to 1; for logits set MARCO_REWARD_SCALE=logit")
        return scores

    def _score(self, embedding: Any) -> float:
        """One number is the score; of two, those of a classifier, the second is a good step's."""
        bad, good = (0.0, *map(float, embedding))[-2:]
        if not 1 <= len(embedding) <= 2:
            raise NoScore(f"{len(embedding)} numbers a text are no score: is it a reward model?")
        return 0.5 * (1.0 + math.tanh((good - bad) / 2.0)) if self._logits else good


def steps_of(output: Output) -> list[str]:
    """The lines of the thought, and the output."""
    lines = [line.strip() for line in output.thought.splitlines()]
    return [*filter(None, lines), output.output]
