"""The OpenAI-compatible runtime against servers that stand for the real ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from marco_search.engine import Journal, make_plan, run_search
from marco_search.errors import InvalidSettings, ModelRefused, RuntimeUnavailable
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.runtime.base import Runtime
from marco_search.runtime.servers.openai_answers import text_id
from marco_search.search.branches import (
    MARCO_O1,
    Branch,
    Expansion,
    Finish,
    Message,
    ReflectionPlacement,
)
from tests.integration.runtime.openai_server import (
    SHAPES,
    OpenAIServer,
    as_server,
    ends_at_once,
)
from tests.integration.runtime.sglang_server import (
    FIRST_CHARACTER,
    expansion,
    runtime,
    serving,
    stop,
    until,
)
from tests.toy import run_branch

WITH_IDS = ("vllm", "llama.cpp")


@pytest.fixture(params=SHAPES)
def server(request: pytest.FixtureRequest) -> Iterator[OpenAIServer]:
    yield from started(request.param)


@pytest.fixture(params=WITH_IDS)
def with_ids(request: pytest.FixtureRequest) -> Iterator[OpenAIServer]:
    yield from started(request.param)


@pytest.fixture
def vllm() -> Iterator[OpenAIServer]:
    yield from started("vllm")


def started(shape: str) -> Iterator[OpenAIServer]:
    with serving(make=as_server(shape)) as running:
        assert isinstance(running, OpenAIServer)
        yield running


def test_the_address_of_another_server_than_sglang_says_how_to_name_it(
    vllm: OpenAIServer,
) -> None:
    address = vllm.url.removeprefix("openai+").removesuffix("/v1")
    wanted = pytest.raises(RuntimeUnavailable, match=r"no SGLang server: .*openai\+http://HOST")
    with wanted, runtime(address):
        pass


def texts(branches: list[Branch]) -> list[list[str]]:
    return [[s.text for s in b.segments] for b in branches]


def test_branches_are_those_that_the_model_writes(server: OpenAIServer) -> None:
    asked = expansion(4)
    placements = [ReflectionPlacement.FIRST, ReflectionPlacement.AT_END]
    asked = replace(
        asked,
        branches=(
            *asked.branches[:2],
            *(replace(b, reflect=p) for b, p in zip(asked.branches[2:], placements, strict=True)),
        ),
    )
    with runtime(server, MARCO_RUNTIME_API_KEY="secret") as opened:
        found = opened.branch([asked])
    assert [b.error for b in found] == [None] * 4
    wanted = [run_branch("Q", request, ("1", "2")) for request in asked.branches]
    assert texts(found[:3]) == texts(wanted[:3])
    assert [b.finish for b in found] == [Finish.STOP] * 4
    first, phrase, second = found[3].segments
    assert first.text.endswith(MARCO_O1.end_of_thought)
    assert phrase.text == MARCO_O1.reflection + "\n"
    assert second.text.endswith("</Output>")
    for branch in found:
        for segment in branch.segments:
            assert "".join(t.text for t in segment.tokens) in (segment.text, "")
            assert all(len(t.top) == 5 and t.top[0][0] == t.id for t in segment.tokens)
    assert {c["sampling_params"]["sampling_seed"] for c in server.calls} == {
        100,
        101,
        102,
        103,
        104,
    }
    assert {c["sampling_params"]["temperature"] for c in server.calls} == {0.5}
    assert all(c["authorization"] == "Bearer secret" for c in server.asked)


def test_what_a_server_can_not_do_is_said(server: OpenAIServer) -> None:
    with runtime(server) as opened:
        info = opened.info
    assert (info.name, info.model, info.exact) == ("openai", "toy-marco-o1", False)
    assert info.version.startswith(f"{server.shape} ")
    assert ("prefixes as text" in info.version) == (server.shape not in WITH_IDS)
    lacks = " ".join(info.lacks)
    assert ("aborting" in lacks) == (server.shape == "llama-cpp-python")
    assert ("cached tokens" in lacks) == (server.shape != "llama.cpp")
    assert ("made from the tokens' texts" in lacks) == (server.shape == "llama-cpp-python")
    known = {"vllm": "/models/toy", "llama.cpp": "7 parameters in 28 bytes", "tgi": "v1"}
    assert info.revision == known.get(server.shape, "unknown")
    assert info.context_tokens == (32_768 if server.shape == "llama-cpp-python" else 512)


def test_prompts_are_in_the_servers_own_template_where_it_is_told(server: OpenAIServer) -> None:
    server.template = "{{ bos_token }}{{ messages[0].content }} =>"
    with runtime(server) as opened:
        text = opened.render([Message(role="user", content="hi")])
        own = opened.info.own_template
    assert (text == "^hi =>") == own == (server.shape == "llama.cpp")
    assert own or text.startswith("<|im_start|>user\nhi")


def test_a_search_goes_on_from_the_tokens_that_it_keeps(with_ids: OpenAIServer) -> None:
    options = SearchOptions(strategy="mini-step-8", rollouts=16, early_stop=False)
    job = ReasoningJob(question="How many?", options=options)
    with runtime(with_ids) as opened:
        search = run_search(job, make_plan(job, opened), opened, Journal()).search
    asked = {a["sampling_params"]["sampling_seed"]: a["input_ids"] for a in with_ids.calls}
    deep = [r for r in search.tree.rollouts if r.start_id and r.reflect is ReflectionPlacement.NO]
    assert deep
    for rollout in deep:
        wanted = with_ids.serves.ids(search.prompt)
        for i in search.tree.path(rollout.start_id):
            node = search.tree.nodes[i]
            wanted += [t.id for t in node.tokens] or with_ids.serves.ids(node.text)
        assert asked[rollout.seed] == wanted


@pytest.mark.parametrize("prompt", ["Q", "^Q"])
def test_what_begins_a_sequence_is_put_in_once(with_ids: OpenAIServer, prompt: str) -> None:
    """Also where the prompt's template writes it."""
    with_ids.begins = "^"
    with runtime(with_ids) as opened:
        opened.branch([replace(expansion(1), parts=(prompt, "^^"))])
    assert with_ids.calls[-1]["input_ids"] == with_ids.serves.ids("^Q^^")


def test_a_branch_goes_on_from_a_candidate_that_was_not_taken(server: OpenAIServer) -> None:
    """Its id came with the answer, its text too: either of them is what is sent."""
    with runtime(server) as opened:
        (branch,) = opened.branch([expansion(1)])
        token = branch.segments[0].tokens[0].top[1][0]
        text = branch.texts[token]
        forced = replace(expansion(1), prefix=f"Q{text}", parts=("Q", (token,)))
        assert opened.branch([forced])[0].error is None
    assert text == "other 1000"
    sent = server.calls[-1]
    if server.shape in WITH_IDS:
        assert sent["input_ids"] == [FIRST_CHARACTER + ord("Q"), 1000]
    else:
        assert sent["text"] == "Qother 1000"
        assert token == (text_id(text) if server.shape == "llama-cpp-python" else 1000)


def test_vllm_behind_a_gateway_is_a_server_without_ids(vllm: OpenAIServer) -> None:
    vllm.missing = {"/tokenize", "/detokenize"}
    with runtime(vllm) as opened:
        assert opened.info.version == "vllm 0.11.0, prefixes as text, token ids from texts"
        (branch,) = opened.branch([replace(expansion(1), parts=("Q",))])
    assert branch.error is None
    (segment,) = branch.segments
    assert all(t.id == text_id(t.text) for t in segment.tokens)
    assert vllm.calls[-1]["text"] == "Q"
    vllm.missing = set()
    with runtime(vllm) as opened:  # the job goes on without the gateway
        parts = ("Q", tuple(t.id for t in segment.tokens[:2]))
        prefix = "Q" + "".join(t.text for t in segment.tokens[:2])
        opened.branch([replace(expansion(1, prefix=prefix), parts=parts)])
    assert vllm.calls[-1]["text"] == prefix
    assert "input_ids" not in vllm.calls[-1]


def test_a_prefix_of_known_length_gets_the_room_that_is_left(with_ids: OpenAIServer) -> None:
    def asked(characters: int) -> Expansion:
        return replace(expansion(1), parts=("Q" * characters,))

    with runtime(with_ids) as opened:
        assert opened.branch([asked(509)])[0].generated_tokens <= 3
        assert with_ids.calls[-1]["sampling_params"]["max_new_tokens"] == 3
        (branch,) = opened.branch([asked(512)])
    said = "PromptTooLong: the prompt has 512 tokens; the model takes 512 in all"
    assert (branch.finish, branch.error) == (Finish.FAILED, said)


def refused(server: OpenAIServer, match: str, **given: Any) -> None:
    with pytest.raises(ModelRefused, match=match) as caught, runtime(server, **given):
        pass
    assert "secret" not in str(caught.value)


def test_a_server_without_log_probs_is_refused_with_advice(server: OpenAIServer) -> None:
    def without(answer: dict[str, Any]) -> None:
        if server.shape == "tgi":
            del answer["details"]["top_tokens"]
        else:
            answer["choices"][0]["logprobs"] = None

    server.probed = without
    start = {"vllm": "--max-logprobs 5", "llama.cpp": "2025 or later", "tgi": "--max-top-n"}
    refused(server, start.get(server.shape, "--logits_all true"), MARCO_RUNTIME_API_KEY="secret")


def test_a_server_with_too_few_candidates_is_refused(vllm: OpenAIServer) -> None:
    def fewer(answer: dict[str, Any]) -> None:
        for top in answer["choices"][0]["logprobs"]["top_logprobs"]:
            top.popitem()

    vllm.probed = fewer
    refused(vllm, "4 candidates for a token, 5 are needed; start it with --max-logprobs")


def test_one_of_several_models_is_named(vllm: OpenAIServer) -> None:
    vllm.names = ["toy-marco-o1", "lora"]
    refused(vllm, "serves toy-marco-o1, lora: name one in MARCO_RUNTIME_MODEL")
    with runtime(vllm, MARCO_RUNTIME_MODEL="lora") as opened:
        assert opened.info.model == "lora"
    refused(vllm, "serves toy-marco-o1, lora: name one", MARCO_RUNTIME_MODEL="other")
    vllm.names = ["toy-marco-o1"]
    refused(vllm, "MARCO_RUNTIME_MODEL asks for other", MARCO_RUNTIME_MODEL="other")


def test_what_is_no_openai_server_is_reported() -> None:
    with (
        serving() as sglang,
        pytest.raises(RuntimeUnavailable),
        runtime(f"openai+{sglang.url}/v1"),
    ):
        pass


@pytest.mark.parametrize(
    "address", ["openai+ftp://h/v1", "openai+http://", "openai+http://h/v1,http://h:30000"]
)
def test_an_address_that_can_not_be_used_is_refused(address: str) -> None:
    with pytest.raises(InvalidSettings, match="MARCO_RUNTIME"), runtime(address):
        pass


def test_a_key_that_a_server_repeats_is_not_shown(vllm: OpenAIServer) -> None:
    vllm.act = lambda h, b: (h.send({"error": f"{h.headers} \x1b[31m"}, 400), True)[1]
    with runtime(vllm, MARCO_RUNTIME_API_KEY="sesame-open") as opened:
        (branch,) = opened.branch([expansion(1)])
    assert "answered 400" in str(branch.error)
    assert "sesame" not in str(branch.error)
    assert str(branch.error).isprintable()


ODD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no log-probs": (lambda c: c.update(logprobs=None), "no log-probabilities"),
    "NaN": (
        lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, float("nan")),
        "nan is not a log-probability",
    ),
    "fewer log-probs": (lambda c: c["logprobs"]["token_logprobs"].pop(), "not a completion"),
    "no candidates": (lambda c: c["logprobs"]["top_logprobs"][0].clear(), "without candidates"),
    "text of others": (lambda c: c.update(text="quite another"), "does not make up"),
    "filtered": (lambda c: c.update(finish_reason="content_filter"), "content_filter"),
    "unfinished": (lambda c: c.update(finish_reason=None), "ended the branch: None"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_fails_its_branch_with_a_reason(vllm: OpenAIServer, name: str) -> None:
    change, reason = ODD[name]
    vllm.strange = lambda answer: change(answer["choices"][0])
    with runtime(vllm) as opened:
        (branch,) = opened.branch([expansion(1)])
    assert str(branch.error).startswith("BranchFailed: ")
    assert reason in str(branch.error)


def test_what_is_aborted_fails_at_once_and_its_connection_is_closed(vllm: OpenAIServer) -> None:
    """vLLM and llama.cpp stop generating for a caller that is gone."""
    vllm.act = lambda h, b: vllm.released.wait(60)
    with runtime(vllm) as opened:
        found: list[Branch] = []
        thread = threading.Thread(target=lambda: found.extend(opened.branch([expansion(2)])))
        thread.start()
        until(lambda: len(vllm.calls) == 2)
        opened.abort()
        thread.join(30)
        assert [b.error for b in found] == ["BranchFailed: aborted"] * 2
        vllm.act = lambda h, b: False
        assert [b.finish for b in opened.branch([expansion(2)])] == [Finish.STOP] * 2


def test_a_server_that_comes_back_with_another_model_is_not_used(vllm: OpenAIServer) -> None:
    with runtime(vllm) as opened:
        opened.branch([expansion(1)])
        stop(vllm)
        with serving(vllm.server_port, "other", make=as_server("vllm")) as other:
            (branch,) = opened.branch([expansion(1)])
            assert "serves other (/models/toy) now, it was toy-marco-o1" in str(branch.error)
            assert not other.asked


@pytest.mark.parametrize("shape", ["vllm", "llama.cpp", "tgi"])
def test_a_server_that_was_away_at_the_start_is_asked_as_the_others_are(shape: str) -> None:
    """Else its own defaults would decide what is sampled, and texts what the ids are."""

    def asked(it: Runtime, prompt: str) -> None:
        (branch,) = it.branch([replace(expansion(1, prefix=prompt), parts=(prompt,))])
        assert branch.error is None

    with serving(make=as_server(shape)) as one, serving(make=as_server(shape)) as two:
        assert isinstance(one, OpenAIServer)
        with runtime(one, two) as opened:
            theirs: dict[bool, str] = {}  # a prompt of the first server's, one of the second's
            for prompt in map(str, range(99)):
                before = len(one.calls)
                asked(opened, prompt)
                theirs[len(one.calls) > before] = prompt
        stop(two)
        with runtime(one, two) as opened:
            asked(opened, theirs[True])
            with serving(two.server_port, make=as_server(shape)) as back:
                assert isinstance(back, OpenAIServer)
                stop(one)
                asked(opened, theirs[False])
                wanted = {n: v for n, v in one.sent.items() if n not in ("prompt", "inputs")}
                assert wanted.items() <= back.sent.items()
                assert back.calls[0].keys() == one.calls[0].keys()


def test_a_turn_that_ends_at_once_is_no_failure(server: OpenAIServer) -> None:
    """llama-cpp-python does not send the token that ends it."""
    with runtime(server) as opened:
        server.complete = ends_at_once
        branches = opened.branch([expansion(2)])
    assert [(b.finish, b.error) for b in branches] == [(Finish.STOP, None)] * 2
    tokens = 0 if server.shape == "llama-cpp-python" else 1
    assert [b.generated_tokens for b in branches] == [tokens] * 2
