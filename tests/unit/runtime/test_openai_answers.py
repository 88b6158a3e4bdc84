"""Completions in each shape that OpenAI-compatible servers answer in."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marco_search.errors import BranchFailed
from marco_search.runtime.reply import Completion, read_completion
from marco_search.runtime.servers.openai_answers import TEXT_IDS, Answer, grammar, read, text_id
from marco_search.search.branches import MARCO_O1

END = MARCO_O1.end_of_output
STOPS = (END, MARCO_O1.end_of_thought)
WORDS = {i: f"w{i}" for i in range(100)}


def lists(tokens: list[str], text: str, finish: str = "stop", **more: Any) -> dict[str, Any]:
    """As vLLM without ids and llama-cpp-python answer."""
    tops = [{t: -0.5} | {f"o{i}": -1.0 - i for i in range(4)} for t in tokens]
    logprobs = {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens), "top_logprobs": tops}
    choice = {"text": text, "logprobs": logprobs, "finish_reason": finish} | more
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": len(tokens)}}


def ids(numbers: list[int], text: str, **more: Any) -> dict[str, Any]:
    """As vLLM answers when it is asked for ids."""
    found = lists([f"token_id:{i}" for i in numbers], text, **more)
    for top in found["choices"][0]["logprobs"]["top_logprobs"]:
        for i in range(4):
            top[f"token_id:{90 + i}"] = top.pop(f"o{i}")
    return found


def content(tokens: list[bytes], text: str, finish: str = "stop", left_out: int = 0) -> Any:
    """As llama.cpp's server answers."""

    def entry(i: int, data: bytes, p: float) -> dict[str, Any]:
        # It sends as `token` what is whole of it.
        return {"id": i, "token": data.decode(errors="ignore"), "bytes": list(data), "logprob": p}

    found = [
        entry(i, data, -0.5)
        | {"top_logprobs": [entry(i, data, -0.5), *(entry(50 + k, b"o", -1.0) for k in range(4))]}
        for i, data in enumerate(tokens)
    ]
    choice = {"text": text, "logprobs": {"content": found}, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": len(tokens) + left_out}
    return {
        "choices": [choice],
        "usage": usage | {"prompt_tokens_details": {"cached_tokens": 5}},
    }


def details(tokens: list[str], text: str, finish: str = "stop_sequence") -> dict[str, Any]:
    """As TGI's /generate answers."""

    def token(i: int, word: str, p: float) -> dict[str, Any]:
        return {"id": i, "text": word, "logprob": p, "special": False}

    return {
        "generated_text": text,
        "details": {
            "finish_reason": finish,
            "generated_tokens": len(tokens),
            "tokens": [token(i, word, -0.5) for i, word in enumerate(tokens)],
            "top_tokens": [
                [token(i, word, -0.5), *(token(50 + k, "o", -1.0 - k) for k in range(5))]
                for i, word in enumerate(tokens)
            ],
        },
    }


def spell(numbers: Any) -> list[str]:
    return [WORDS[i] for i in numbers]


def answer(found: Any) -> Answer:
    return read(found, spell, trims='"content"' in json.dumps(found))


def completed(found: Any) -> Completion:
    reply = answer(found).as_sglang(STOPS)
    return read_completion(reply["text"], reply["meta_info"], stops=STOPS, most=100)


@pytest.mark.parametrize(
    "found",
    [
        lists(["4", "\n", "</", "Output", ">\n"], "4\n"),
        lists(["4", "\n", "</", "Output", ">\n"], "4\n", stop_reason=END),
        lists(["4", "\n", "</", "Output", ">"], f"4\n{END}"),
        lists(["4", "\n", "</", "Output", ">", "more"], f"4\n{END}more", "length"),
        details(["4", "\n", "</", "Output", ">"], f"4\n{END}"),
    ],
    ids=["cut off", "cut off and named", "kept", "went on", "TGI"],
)
def test_a_stop_text_is_found_whether_it_is_sent_or_not(found: Any) -> None:
    got = completed(found)
    assert (got.text, got.stop, got.stopped) == ("4\n", END, True)
    assert [t.text for t in got.tokens][:4] == ["4", "\n", "</", "Output"]
    assert len(got.tokens) == 5


@pytest.mark.parametrize(
    "found",
    [
        lists(["4", "<|im_end|>"], "4"),
        lists(["4"], "4"),
        content([b"4", b""], "4"),
        details(["4", "</s>"], "4", "eos_token"),
    ],
)
def test_the_end_of_the_sequence_is_no_stop_text(found: Any) -> None:
    got = completed(found)
    assert (got.text, got.stop, got.stopped) == ("4", None, True)


def test_ids_of_the_model_are_spelt_by_the_server() -> None:
    got = completed(ids([3, 4], "w3w4", finish="length"))
    assert [(t.id, t.text) for t in got.tokens] == [(3, "w3"), (4, "w4")]
    assert got.tokens[0].top[1] == (90, -1.0)
    assert got.texts[91] == "w91"


def test_without_ids_they_are_made_from_the_texts_always_the_same() -> None:
    found = answer(lists(["4", "5"], "45", "length"))
    assert not found.has_ids
    assert [row[1] for row in found.tokens] == [text_id("4"), text_id("5")]
    assert text_id("4") == 1625113531
    assert TEXT_IDS <= text_id("\ud800") < 2 * TEXT_IDS


def test_candidates_of_the_same_text_are_one_and_their_place_is_filled() -> None:
    found = lists(["4"], "4", "length")
    del found["choices"][0]["logprobs"]["top_logprobs"][0]["o3"]
    (token,) = completed(found).tokens
    assert len(token.top) == 5
    assert token.top[-1][1] < -1e38


def test_a_token_that_is_none_of_the_best_is_not_one_of_the_candidates() -> None:
    found = lists(["4"], "4", "length")
    found["choices"][0]["logprobs"]["top_logprobs"][0] |= {"4": -9.0, "o5": -2.5}
    (token,) = completed(found).tokens
    assert [p for _, p in token.top] == [-1.0, -2.0, -2.5, -3.0, -4.0]


@pytest.mark.parametrize(
    "found",
    [
        content([b"\xe8\x8b", b"\xb9", b"4"], "苹4", "length"),
        lists(["", "", "4"], "苹4", "length"),
        lists(["\ufffd", "\ufffd", "4"], "苹4", "length"),
    ],
)
def test_a_character_stands_where_it_is_completed(found: Any) -> None:
    assert [t.text for t in completed(found).tokens] == ["", "苹", "4"]


def test_tokens_of_a_stop_text_that_are_left_out_can_be_put_back() -> None:
    """llama.cpp leaves out as many as the stop text has by itself; here one too many."""
    cut = answer(content([b"so", b"\n"], "so\n4", left_out=3))
    assert cut.cut
    rest = answer(content([b"4</", b"Output>", b""], f"4{END}"))
    whole = cut.whole_tokens().closed(rest, END).as_sglang(STOPS)
    got = read_completion(whole["text"], whole["meta_info"], stops=STOPS)
    assert [t.text for t in got.tokens] == ["so", "\n", "4</", "Output>"]
    assert (got.text, got.stop, got.prompt_tokens, got.cached_tokens) == (
        "so\n4", END, 7, 5,
    )  # fmt: skip


def test_an_answer_all_of_whose_tokens_are_left_out_is_cut() -> None:
    found = content([], "4", left_out=2)
    found["choices"][0]["logprobs"] = None
    cut = read(found, spell, trims=True)
    assert (cut.cut, cut.text, cut.tokens) == (True, "4", [])


def test_tokens_within_a_character_come_as_one_whose_id_is_made() -> None:
    """Then the end of the sequence is told by its token, not by the count."""
    found = answer(content(["苹".encode(), b"4", b""], "苹4", left_out=2))
    assert not found.cut
    assert [row[1] for row in found.tokens] == [0, 1, 2]  # the candidates read the same
    last = content(["苹".encode(), b"4", b""], "苹4", left_out=2)
    for top in last["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        top["bytes"] = [0xB9]
    found = answer(last)
    assert [row[1] for row in found.tokens] == [text_id("苹"), 1, 2]
    assert not found.has_ids
    assert [t.text for t in completed(last).tokens] == ["苹", "4", ""]


def test_what_may_become_a_stop_text_stands_at_its_own_token() -> None:
    """llama.cpp's server holds `</` back, and sends it with the token after it."""
    found = content([b"4", b"", b"</Th", b"ought"], "4</Thought", "length")
    tops = [e["top_logprobs"] for e in found["choices"][0]["logprobs"]["content"]]
    tops[1][0]["bytes"], tops[2][0]["bytes"] = list(b"</"), list(b"Th")
    assert [t.text for t in completed(found).tokens] == ["4", "</", "Th", "ought"]
    held = content([b"4", b""], "4", left_out=1)
    held["choices"][0]["logprobs"]["content"][1]["top_logprobs"][0]["bytes"] = list(b"</")
    cut = answer(held)
    assert cut.cut
    assert [row[2] for row in cut.whole_tokens().tokens] == ["4"]


def test_tokens_that_reach_into_the_stop_text_are_given_up() -> None:
    cut = answer(content([b"so", b"\n</"], "so\n", left_out=2))
    assert [row[2] for row in cut.whole_tokens().tokens] == ["so"]


def test_a_grammar_allows_the_texts_and_nothing_else() -> None:
    assert grammar(['a"\n', "苹"]) == 'root ::= "a\\U00000022\\U0000000a" | "苹"'


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"choices": []},
        {"choices": [{"text": "4", "finish_reason": "stop", "logprobs": None}]},
        {"choices": [{"text": "4", "finish_reason": "stop", "logprobs": {"tokens": ["4"]}}]},
        {"details": None},
        {"choices": [{"text": None, "finish_reason": "stop", "logprobs": {"content": []}}]},
    ],
)
def test_what_is_no_completion_with_log_probs_is_refused(found: Any) -> None:
    with pytest.raises(BranchFailed, match="log-probabilities"):
        answer(found)


SHAPES: list[Callable[[], Any]] = [
    lambda: lists(["4", "</Output>"], "4"),
    lambda: ids([3, 4], "w3w4", finish="length"),
    lambda: content([b"4", b"\xe8"], "4", "length"),
    lambda: details(["4", "</Output>"], "4</Output>"),
]
odd = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([10**400, -(2**31), 2**31, -1, 0, 7, float("nan"), float("inf"), -0.5])
    | st.sampled_from(["", "\x00", "\ud800", "�", "stop", "length", "token_id:7", END]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "token", "bytes", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_answer_is_a_failed_branch_or_can_be_stored(data: st.DataObject) -> None:
    found = json.loads(json.dumps(data.draw(st.sampled_from(SHAPES))()))
    for _ in range(data.draw(st.integers(1, 3))):
        at = found
        while places := (list(at) if isinstance(at, dict) else list(range(len(at)))):
            place = data.draw(st.sampled_from(places))
            if not isinstance(at[place], dict | list) or data.draw(st.booleans()):
                at[place] = copy.deepcopy(data.draw(odd))
                break
            at = at[place]
    try:
        got = completed(found)
    except BranchFailed as error:
        assert str(error)
        return
    for token in got.tokens:
        assert 0 <= token.id < 2**31
        assert len(token.top) == 5
    "".join([got.text, *(t.text for t in got.tokens), *got.texts.values()]).encode()
