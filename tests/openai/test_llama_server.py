"""The same model on llama.cpp's own server, where that is on PATH: it answers in its own shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from marco_search.errors import LocalServiceFailed
from marco_search.runtime.base import Runtime
from marco_search.search.branches import Finish, ReflectionPlacement, TurnFormat
from tests.openai import llama_cpp
from tests.openai.test_real_server import SENTENCE, fork, opened, text

SHOTS = """<Thought>
Two and three make five.
</Thought>
<Output>
5
</Output>

<Thought>
One and three make four.
</Thought>
<Output>
4
</Output>

<Thought>
"""


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    try:
        with llama_cpp.serving_itself(Path(".marco/llama-server-test.log")) as url:
            found = opened(url)
            yield found
            found.close()
    except LocalServiceFailed as error:
        pytest.skip(str(error))


def test_it_goes_on_from_token_ids_in_its_own_chat_template(runtime: Runtime) -> None:
    assert runtime.info.version.startswith("llama.cpp b")
    assert "from texts" not in runtime.info.version
    assert (runtime.info.own_template, runtime.info.context_tokens) == (True, 1024)
    assert runtime.info.lacks == ("the same bits again",)
    (greedy,) = runtime.branch([replace(fork("One and", 1, temperature=0.0), parts=("One and",))])
    tokens = greedy.segments[0].tokens[:3]
    ids, before = tuple(t.id for t in tokens), "".join(t.text for t in tokens)
    again = replace(fork(f"One and{before}", 1, temperature=0.0), parts=("One and", ids))
    (rest,) = runtime.branch([again])
    assert rest.prompt_tokens == greedy.prompt_tokens + 3
    assert text(greedy).startswith(before + text(rest)[:10])
    assert rest.cached_tokens > 0


def test_the_tokens_of_a_stop_text_are_there_though_it_leaves_them_out(runtime: Runtime) -> None:
    greedy = replace(fork(SHOTS, 1, temperature=0.0, max_new_tokens=60), turn=TurnFormat())
    asked = [replace(greedy.branches[0], branch_id=1, reflect=ReflectionPlacement.AT_END)]
    plain, reflected = runtime.branch(
        [replace(greedy, parts=(SHOTS,), branches=(*greedy.branches, *asked))]
    )
    assert text(plain).endswith("</Output>")
    assert plain.finish is Finish.STOP
    first, phrase, second = reflected.segments
    assert first.text.endswith("</Thought>")
    assert phrase.forced
    assert second.text.endswith("</Output>")
    for segment in (plain.segments[0], first, second):
        assert "".join(t.text for t in segment.tokens) == segment.text
        assert all(t.text and t.logprob > -20 for t in segment.tokens)


def test_characters_of_several_tokens_are_whole(runtime: Runtime) -> None:
    greedy = replace(fork("🍎🍏🍎🍏🍎🍏", 1, temperature=0.0), parts=("🍎🍏🍎🍏🍎🍏",))
    (branch,) = runtime.branch([replace(greedy, turn=replace(SENTENCE, stops=("\n\n",)))])
    assert set(text(branch)) <= set("🍎🍏")
