"""Token texts joined are the generated text, whatever the pieces look like."""

from __future__ import annotations

from typing import Any

import pytest

from marco_search.errors import BranchFailed
from marco_search.runtime.reply import BROKEN, candidate_texts, ids, read_completion


def meta(pieces: list[str], reason: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "finish_reason": reason or {"type": "length"},
        "output_token_logprobs": [[-0.1, i, p] for i, p in enumerate(pieces)],
        "output_top_logprobs": [[[-float(k), k, None] for k in range(5)] for _ in pieces],
    }


def texts(text: str, pieces: list[str], reason: dict[str, Any] | None = None) -> list[str]:
    return [t.text for t in read_completion(text, meta(pieces, reason)).tokens]


def test_a_stop_string_belongs_to_the_text() -> None:
    reason = {"type": "stop", "matched": "</Output>"}
    assert texts("4\n", ["4", "\n", "</Output>"], reason) == ["4", "\n", "</Output>"]


def test_the_end_of_the_sequence_has_no_text() -> None:
    reason = {"type": "stop", "matched": 151645}
    assert texts("4", ["4", "<|im_end|>"], reason) == ["4", ""]


def test_a_split_character_stands_at_the_token_that_completes_it() -> None:
    pieces = ["a", BROKEN, BROKEN, BROKEN, "b"]
    assert texts("a苹b", pieces) == ["a", "", "", "苹", "b"]


def test_split_characters_at_the_end_and_before_a_stop_string() -> None:
    assert texts("a苹果", ["a", BROKEN, BROKEN, BROKEN + BROKEN, BROKEN]) == [
        "a",
        "",
        "",
        "",
        "苹果",
    ]
    reason = {"type": "stop", "matched": "</Output>"}
    pieces = ["a", BROKEN, BROKEN, "</Output>"]
    assert texts("a苹", pieces, reason) == ["a", "", "苹", "</Output>"]


def test_a_space_after_a_split_character_is_that_of_its_token() -> None:
    """Else a fork there would have two: its candidate has one as well."""
    split = [BROKEN, BROKEN, BROKEN]
    assert texts("a苹 b", ["a", *split, " b"]) == ["a", "", "", "苹", " b"]
    assert texts("a苹 b", ["a", *split, "b"]) == ["a", "", "", "苹 ", "b"]  # one that drops it


def test_characters_that_were_never_completed_stand_beside_others() -> None:
    broken = f"{BROKEN}和{BROKEN}"
    for pieces in ([BROKEN] * 6, [BROKEN * 2, BROKEN * 4]):
        assert texts(f"a{broken} b", ["a", *pieces, " b"]) == [
            "a", *[""] * (len(pieces) - 1), broken, " b",
        ]  # fmt: skip
        assert texts(f"a{broken}", ["a", *pieces])[-1] == broken


def test_pieces_that_do_not_fit_the_text_are_refused() -> None:
    with pytest.raises(BranchFailed, match="make up"):
        texts("xyz苹", ["a", BROKEN, BROKEN, "q"])


def test_log_probs_are_float32_values_and_candidates_are_sorted() -> None:
    import struct

    sent = meta(["x"])
    sent["output_token_logprobs"][0][0] = -0.1234567891234
    sent["output_top_logprobs"][0].reverse()
    (token,) = read_completion("x", sent).tokens
    assert struct.unpack("f", struct.pack("f", token.logprob))[0] == token.logprob
    assert [p for _, p in token.top] == [0.0, -1.0, -2.0, -3.0, -4.0]


def test_a_nul_that_a_model_made_up_is_shown_as_broken() -> None:
    assert texts("a\x00b", ["a", "\x00b"]) == ["a", f"{BROKEN}b"]


def test_candidates_read_as_the_runtime_shows_them() -> None:
    sent = meta(["x", "y"])
    sent["output_top_logprobs"] = [
        [[-0.1, 7, " x"], [-2.0, 8, "\x00"], [-3.0, 9, None]],
        [[-0.1, 10, BROKEN], [-9.0, 151645, "<|im_end|>"], [-9.5, 7, " x"]],
    ]
    candidates = [c for top in sent["output_top_logprobs"] for c in top]
    read = candidate_texts(candidates, ids(candidates))
    assert read == {7: " x", 8: BROKEN, 10: BROKEN, 151645: "<|im_end|>"}
