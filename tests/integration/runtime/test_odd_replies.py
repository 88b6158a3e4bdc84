"""Whatever a server answers: one branch fails with a reason, its siblings stand."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marco_search.errors import BranchFailed
from marco_search.runtime.base import Runtime
from marco_search.runtime.reply import Completion, read_completion
from marco_search.search.branches import MARCO_O1, Branch, Finish
from tests.integration.runtime.odd_replies import HARMLESS, NOT_JSON, ODD, Reply, sent
from tests.integration.runtime.sglang_server import (
    Handler,
    Server,
    completion,
    expansion,
    runtime,
    serving,
)

BAD = 101
"""Seed of the branch whose answer is odd; its siblings have 100 and 102."""


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[Server, Runtime]]:
    with serving() as server, runtime(server, MARCO_RUNTIME_API_KEY="sesame-open") as found:
        yield server, found


def three(opened: tuple[Server, Runtime], act: Any) -> list[Branch]:
    """Three branches, of which the one in the middle is answered by `act`."""
    server, found = opened

    def chosen(handler: Handler, body: dict[str, Any]) -> bool:
        bad = body["sampling_params"].get("sampling_seed") == BAD
        if bad:
            act(handler, body)
        return bad

    server.act = chosen
    return found.branch([expansion(3)])


def changed(change: Any) -> Any:
    def act(handler: Handler, body: dict[str, Any]) -> None:
        answer = completion(body)
        change(answer)
        handler.send(answer)

    return act


def failed_alone(branches: list[Branch]) -> str:
    assert [b.finish for b in branches] == [Finish.STOP, Finish.FAILED, Finish.STOP]
    return str(branches[1].error)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_fails_its_branch_with_a_reason(
    opened: tuple[Server, Runtime], name: str
) -> None:
    change, reason = ODD[name]
    error = failed_alone(three(opened, changed(change)))
    assert error.startswith("BranchFailed: ")
    assert reason in error


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_only_unknown_does_no_harm(opened: tuple[Server, Runtime], name: str) -> None:
    branches = three(opened, changed(HARMLESS[name]))
    assert [b.finish for b in branches] == [Finish.STOP] * 3
    assert branches[1].segments[-1].text.endswith(MARCO_O1.end_of_output)


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_not_json_fails_its_branch(opened: tuple[Server, Runtime], name: str) -> None:
    error = failed_alone(three(opened, lambda h, b: h.raw(200, NOT_JSON[name])))
    assert "not a JSON object" in error


@pytest.mark.parametrize("sized", [True, False])
def test_an_answer_that_is_too_large_is_refused_while_it_arrives(
    opened: tuple[Server, Runtime], sized: bool
) -> None:
    """With or without a Content-Length: the server can't even send a hundredth of it."""
    most, written = 1 << 30, [0]
    over = threading.Event()

    def flood(handler: Handler, body: dict[str, Any]) -> None:
        handler.send_response(200)
        if sized:
            handler.send_header("Content-Length", str(most))
        handler.end_headers()
        handler.close_connection = True
        try:
            while written[0] < most:
                written[0] += handler.connection.send(b" " * 65_536)
        except OSError:
            over.set()

    assert "larger than" in failed_alone(three(opened, flood))
    assert over.wait(30)
    assert written[0] < most / 50


@pytest.mark.parametrize("status", [200, 400])
def test_what_a_server_says_is_escaped_and_without_the_key(
    opened: tuple[Server, Runtime], status: int
) -> None:
    words = "bad\n2026-01-01 CRITICAL root: FORGED\x1b[31m Bearer sesame-open " + "x" * 5_000

    def act(handler: Handler, body: dict[str, Any]) -> None:
        if status == 200:
            handler.send({"text": "", "meta_info": {"error": words}})
        else:
            handler.send({"detail": words}, status)

    error = failed_alone(three(opened, act))
    assert error.isprintable()
    assert r"bad\n2026" in error
    assert "sesame" not in error
    assert len(error) < 700


def test_an_answer_that_is_not_http_is_reported_without_the_key(
    opened: tuple[Server, Runtime],
) -> None:
    def echo(handler: Handler, body: dict[str, Any]) -> None:
        handler.wfile.write(b"Authorization: Bearer sesame-open\x1b[0m\r\n\r\n")
        handler.close_connection = True

    error = failed_alone(three(opened, echo))
    assert "broke off" in error
    assert "sesame" not in error
    assert error.isprintable()


def test_tokens_after_the_stop_text_are_neither_kept_nor_scored(
    opened: tuple[Server, Runtime],
) -> None:
    def chatty(reply: Reply) -> None:
        found = reply["meta_info"]
        found["finish_reason"] = {"type": "length"}
        for name in ("output_token_logprobs", "output_top_logprobs"):
            found[name] = [*found[name], found[name][0]]
        reply["text"] += MARCO_O1.end_of_output + found["output_token_logprobs"][0][2]

    plain = three(opened, changed(lambda reply: None))[1]
    assert three(opened, changed(chatty))[1].segments == plain.segments


def reply(pieces: list[str], reason: Any, text: str | None = None) -> Reply:
    top = [[-0.5 - k, 40 + k, "x"] for k in range(5)]
    return {
        "text": "".join(pieces) if text is None else text,
        "meta_info": {
            "finish_reason": reason,
            "prompt_tokens": 9,
            "cached_tokens": 8,
            "completion_tokens": len(pieces),
            "e2e_latency": 0.5,
            "output_token_logprobs": [[-0.5, i, piece] for i, piece in enumerate(pieces)],
            "output_top_logprobs": [list(map(list, top)) for _ in pieces],
        },
    }


def read(found: Reply, **asked: Any) -> Completion:
    return read_completion(found["text"], found["meta_info"], **asked)


END = MARCO_O1.end_of_output
STOP = {"type": "stop", "matched": MARCO_O1.end_of_output}


@pytest.mark.parametrize(
    ("pieces", "text", "reason", "texts"),
    [
        # A tokenizer that drops the space before a word which stands alone.
        (["The", "answer", "is", "4"], "The answer is 4", {"type": "length"}, None),
        (["4", "</s>"], "4", {"type": "stop", "matched": 2}, ["4", ""]),
        (["4", "<|im_end|>"], "4", {"type": "stop", "matched": None}, ["4", ""]),
        (["4", "<|im_end|>"], "4", {"type": "stop", "matched": [1, 2]}, ["4", ""]),
        (["<|a|>", "4", "<b>", "5"], "4<b>5", {"type": "length"}, ["", "4", "<b>", "5"]),
        (["4", "</", "Output", ">"], "4", {"type": "stop", "matched": None}, None),
        (["4", "</", "Output", ">\n"], "4", STOP, None),
        (["�", "�", "�", "<|x|>", "b"], "苹b", {"type": "length"}, ["", "", "苹", "", "b"]),
        (["a", "�", "�"], "a�", {"type": "length"}, ["a", "", "�"]),
        (["a", " ,", "b"], "a,b", {"type": "length"}, ["a", ",", "b"]),
    ],
)
def test_pieces_are_laid_along_the_text(
    pieces: list[str], text: str, reason: dict[str, Any], texts: list[str] | None
) -> None:
    found = [t.text for t in read(reply(pieces, reason, text)).tokens]
    if texts is not None:
        assert found == texts
    elif "Output" in pieces:
        assert found == pieces
    else:
        assert found == ["The", " answer", " is", " 4"]


def test_the_end_of_a_thought_counts_where_it_was_asked_for() -> None:
    found = reply(["a", MARCO_O1.end_of_thought, "b"], {"type": "length"})
    both = read(found, stops=(MARCO_O1.end_of_output, MARCO_O1.end_of_thought))
    assert (both.text, both.stop, len(both.tokens)) == ("a", MARCO_O1.end_of_thought, 2)
    one = read(found)
    assert (one.text, one.stop, one.stopped) == (f"a{MARCO_O1.end_of_thought}b", None, False)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(2**31), 2**31, 2**63, -1])
    | st.floats()
    | st.text(st.characters(codec=None), max_size=5)
    | st.sampled_from(["\x00", "\ud800", "�", END, "stop", "length", "<|im_end|>"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "matched", "message", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> Reply:
    """A good reply with one to three of its values replaced, at any depth."""
    pieces = draw(st.lists(st.sampled_from(["4", " is", "�", "苹", END]), min_size=1))
    reason = draw(st.sampled_from([STOP, {"type": "length"}, {"type": "stop", "matched": 7}]))
    found: Any = sent(reply(pieces, reason))
    for _ in range(draw(st.integers(1, 3))):
        at = found
        while True:
            places = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not places:
                break
            place = draw(st.sampled_from(places))
            if not isinstance(at[place], dict | list) or draw(st.booleans()):
                at[place] = copy.deepcopy(draw(anything))
                break
            at = at[place]
    return sent(found)


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_any_answer_is_a_failed_branch_or_can_be_stored(found: Reply) -> None:
    if not isinstance(found["meta_info"], dict):
        return  # refused before
    try:
        got = read(found, stops=(MARCO_O1.end_of_output, MARCO_O1.end_of_thought), most=100)
    except BranchFailed as error:
        assert str(error)
        return
    assert 1 <= len(got.tokens) <= 100
    assert math.isfinite(got.seconds)
    assert 0 <= got.cached_tokens <= got.prompt_tokens < 2**31
    "".join([got.text, *(t.text for t in got.tokens), *got.texts.values()]).encode()
    assert "\x00" not in got.text
    whole = "".join(t.text for t in got.tokens)
    assert whole.startswith(got.text + (got.stop or ""))
    for token in got.tokens:
        for number, logprob in ((token.id, token.logprob), *token.top):
            assert 0 <= number < 2**31
            assert math.isfinite(logprob)
            assert logprob <= 1e-3
