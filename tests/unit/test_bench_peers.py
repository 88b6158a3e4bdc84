"""The load for other projects: a chat with the same texts, a fair count, a clear table."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.bench.engine import texts
from ops.bench.engine.simulated_server import Simulated, simulated
from ops.bench.peers import compare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Simulated]:
    with simulated() as running:
        yield running


def chat(server: Simulated, **more: Any) -> dict[str, Any]:
    body = {"model": "any", "messages": [{"role": "user", "content": "How many?"}]} | more
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_a_chat_gets_the_texts_that_our_searches_get(server: Simulated) -> None:
    server.reset()
    answer = chat(server, n=2)
    prompt = texts.chat_prompt([{"role": "user", "content": "How many?"}])
    wanted = [texts.completion(*texts.completion_of(prompt, i)) for i in range(2)]
    assert [c["message"]["content"] for c in answer["choices"]] == [text for text, _, _ in wanted]
    assert answer["usage"]["completion_tokens"] == sum(tokens for _, tokens, _ in wanted)
    counters = server.counters()
    assert (counters.requests, counters.peak_running) == (2, 2)
    assert counters.generated == answer["usage"]["completion_tokens"]


def test_a_stop_string_and_a_token_limit_cut_a_chat_short(server: Simulated) -> None:
    server.reset()
    (line,) = chat(server, stop="\n")["choices"]
    assert line["finish_reason"] == "stop"
    assert "\n" not in line["message"]["content"]
    short = chat(server, max_tokens=3)
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 3


def test_a_thought_in_the_last_message_is_gone_on_with() -> None:
    asked = [{"role": "user", "content": "How many?\n<Thought>\none\ntwo\n"}]
    fresh = [{"role": "user", "content": "How many?"}]
    _, later = texts.completion_of(texts.chat_prompt(asked), 3)
    _, first = texts.completion_of(texts.chat_prompt(fresh), 3)
    assert first - later == 2


def test_one_request_in_so_many_is_refused_until_the_next_reset(server: Simulated) -> None:
    server.reset(refuse_every=2)
    chat(server, max_tokens=2)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        chat(server, max_tokens=2)
    server.reset()
    chat(server, max_tokens=2)
    chat(server, max_tokens=2)


def test_an_adapter_counts_what_was_kept_and_which_searches_were_lost(tmp_path: Path) -> None:
    task, told = tmp_path / "task.json", tmp_path / "outcome.json"
    asked = {"url": "", "questions": ["a", "b", "c"], "system": "", "budget": 5, "width": 2}
    task.write_text(json.dumps(asked))
    code = (
        "from ops.bench.peers import adapter\n"
        "def search(task, question):\n"
        "    if question == 'b': raise ValueError('no luck')\n"
        "    return task.budget\n"
        "adapter.main(search)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(task), str(told)], check=True, cwd=ROOT)
    outcome = json.loads(told.read_text())
    assert outcome["kept"] == [5, 0, 5]
    assert outcome["errors"] == ["ValueError: no luck"]
    assert outcome["seconds"] > 0


def test_the_table_says_what_did_not_run() -> None:
    figures = dict.fromkeys(compare.COLUMNS, 1.5) | {"refused_error": ""}
    found = {f"{name}_{key}": value for name in compare.OURS for key, value in figures.items()}
    found |= {f"{name}_skipped": "no reason" for name in compare.PEERS}
    found |= {f"its_hub_{key}": value for key, value in figures.items()}
    found["its_hub_refused_error"] = "RuntimeError: lost"
    del found["its_hub_skipped"]
    lines = compare.table(found).splitlines()
    assert len(lines) == 2 + len(compare.OURS) + len(compare.PEERS)
    assert sum("did not run: no reason" in line for line in lines) == len(compare.PEERS) - 1
    assert sum("none: the search ends" in line for line in lines) == 1
    assert "left out: no network" in compare.table({"peers_skipped": "no network"})
