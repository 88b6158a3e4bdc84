"""How long a retry waits, and what a server's refusal is taken for."""

from __future__ import annotations

import json
from email.utils import formatdate
from random import Random

import pytest

from marco_search.errors import BranchFailed, PromptTooLong, RuntimeUnavailable
from marco_search.runtime.servers.backend import retry_delay_s
from marco_search.runtime.servers.calls import details, refused


def test_the_pause_grows_up_to_its_cap_and_is_anywhere_below_it() -> None:
    random = Random(1)
    for failed, most in ((1, 0.25), (2, 0.5), (4, 2.0), (9, 8.0), (10_000, 8.0)):
        pauses = [retry_delay_s(failed, None, random) for _ in range(200)]
        assert 0 <= min(pauses) < most / 5
        assert most * 0.8 < max(pauses) <= most


def test_a_server_that_names_a_pause_gets_at_least_that() -> None:
    pauses = [retry_delay_s(1, 3.0, Random(i)) for i in range(100)]
    assert min(pauses) >= 3.0
    assert len(set(pauses)) > 90  # those that were refused together do not come back together


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    def after(value: str | None) -> float | None:
        return refused("http://s/generate", 429, value, "").retry_after_s

    assert after("7") == 7
    assert after(None) is None
    assert after("soon") is None
    assert after("-3") == 0
    found = after(formatdate(2_000_000_000_000 / 1000, usegmt=True))
    assert found is not None
    assert found > 0


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "overloaded"),
    [
        (400, BranchFailed, False, False),
        (401, RuntimeUnavailable, False, False),
        (404, BranchFailed, False, False),
        (408, RuntimeUnavailable, True, False),
        (429, RuntimeUnavailable, True, True),
        (500, RuntimeUnavailable, True, False),
        (502, RuntimeUnavailable, True, False),
        (503, RuntimeUnavailable, True, True),
    ],
)
def test_what_each_status_means(status: int, kind: type, retryable: bool, overloaded: bool) -> None:
    found = refused("http://s/generate", status, None, "<html>oh</html>")
    assert (found.kind, found.retryable, found.overloaded) == (kind, retryable, overloaded)
    assert f"http://s/generate answered {status}: <html>oh</html>" in found.message


def test_the_server_s_own_words_are_found_in_every_shape() -> None:
    for body in ({"error": {"message": "m"}}, {"error": "m"}, {"message": "m"}, {"detail": "m"}):
        assert details(json.dumps(body).encode()) == "m"
    assert details(b"<html>oh</html>") == "<html>oh</html>"
    for odd in (b'{"error": {"x": 1}}', b"[" * 9_000, b"\xff", b'{"error": ' + b"9" * 5_000 + b"}"):
        assert details(odd) == odd.decode(errors="replace")


def test_a_prompt_that_fills_the_context_leaves_no_room() -> None:
    words = (
        "Requested token count exceeds the model's maximum context length of 512 tokens. You "
        "requested a total of 700 tokens: {} tokens from the input messages and 9 tokens."
    )
    room = refused("http://s/generate", 400, None, words.format(500)).max_new_tokens
    none = refused("http://s/generate", 400, None, words.format(511)).max_new_tokens
    assert (room, none) == (11, 0)
    other = "The input (600 tokens) is longer than the model's context length (512 tokens)."
    assert refused("http://s/generate", 400, None, other).kind is PromptTooLong
