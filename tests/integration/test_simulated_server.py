"""What the benchmarks count is what the documentation says they count."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from ops.bench import peers, queue, runtime, simulator
from ops.bench.simulator import SimulatedServer, simulated_server


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatedServer]:
    with simulated_server() as running:
        yield running


def chat(server: SimulatedServer, **more: Any) -> dict[str, Any]:
    body = {"model": "any", "messages": [{"role": "user", "content": "How many?"}]} | more
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_searches_and_a_bare_client_get_the_same_tokens(server: SimulatedServer) -> None:
    run = runtime.many(server, 2, 4, "step")
    found = runtime.throughput(server, run)
    assert found["throughput_ratio"] > 0
    assert found["discarded_tokens"] == found["failed"] == 0
    assert 0 < found["simulated_cached_prompt_share"] < 1
    assert found["requests"] == run.counters["requests"] - run.counters["commits"]


def test_a_chat_gets_the_texts_that_searches_get(server: SimulatedServer) -> None:
    server.reset()
    answer = chat(server, n=2)
    prompt = simulator.chat_prompt([{"role": "user", "content": "How many?"}])
    wanted = [simulator.pieces(*simulator.completion_of(prompt, i)) for i in range(2)]
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts == ["".join(pieces) for pieces in wanted]
    assert answer["usage"]["completion_tokens"] == sum(map(len, wanted))
    counters = server.counters()
    assert (counters["requests"], counters["peak_running"]) == (2, 2)
    (line,) = chat(server, stop="\n")["choices"]
    assert "\n" not in line["message"]["content"]


def test_one_request_in_n_is_refused_until_the_next_reset(server: SimulatedServer) -> None:
    server.reset(refuse_every=2)
    chat(server, stop="\n")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        chat(server, stop="\n")
    server.reset()
    for _ in range(2):
        chat(server, stop="\n")


def unlucky(task: peers.Task, question: str) -> int:
    if question == "b":
        raise ValueError("no luck")
    return task.budget


def test_a_peer_that_raises_loses_one_search() -> None:
    task = peers.Task(url="", questions=["a", "b", "c"], system="", budget=5, width=2)
    outcome = peers.each_in_a_process(unlucky, task)
    assert (outcome.kept, outcome.errors) == (10, ["ValueError: no luck"])


def test_the_table_says_which_peers_did_not_run() -> None:
    figures: dict[str, Any] = dict.fromkeys(peers.COLUMNS, 1.5) | {"refused_error": ""}
    found: dict[str, Any] = {f"{name}_skipped": "no reason" for name in peers.TITLES}
    found |= {f"its_hub_{key}": value for key, value in figures.items()}
    found["its_hub_refused_error"] = "RuntimeError: lost"
    del found["its_hub_skipped"]
    table = peers.table(found)
    assert table.count("did not run: no reason") == len(peers.TITLES) - 1
    assert table.count("none: the search ends") == 1
    assert "left out: no network" in peers.table({"peers_skipped": "no network"})


def test_statements_of_several_lines_count_once_and_transactions_not_at_all() -> None:
    log = (
        "2026 UTC [1] LOG:  statement: BEGIN\n"
        "2026 UTC [1] LOG:  execute <unnamed>: \n\tSELECT 1,\n\t 2\n"
        "2026 UTC [1] DETAIL:  Parameters: $1 = '5'\n"
        "2026 UTC [1] LOG:  statement: COMMIT\n"
        "2026 UTC [1] LOG:  statement: SELECT 3\n"
        "2026 UTC [1] LOG:  checkpoint starting: time\n"
    )
    assert queue.statements(log) == 2


def test_the_time_per_node_is_measured_over_a_whole_search() -> None:
    assert runtime.milliseconds_per_node(seed=0) > 0
