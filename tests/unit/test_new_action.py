"""The worked example of CONTRIBUTING.md: a new kind of action, in two files.

1. marco_search/search/actions.py: a function that yields where to cut, and its entry in ACTIONS.
2. marco_search/search/config.py: a strategy in STRATEGIES that uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from marco_search.engine import Journal, make_plan, run_search
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.replay import replay
from marco_search.search.actions import ACTIONS, Action, ActionKind, cut
from marco_search.search.branches import MARCO_O1, Token
from marco_search.search.config import STRATEGIES, SearchConfig
from tests.toy import ToyRuntime


def words(tokens: Sequence[Token], _: float) -> Iterator[int]:
    """A node ends with the token in which a word does."""
    return (i for i in range(1, len(tokens)) if " " in tokens[i - 1].text)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIONS, "word", ActionKind(meaning="one word of the thought", cuts=words))
    monkeypatch.setitem(STRATEGIES, "words", {"action": "word"})


def test_a_job_can_name_it_and_its_tree_is_cut_that_way() -> None:
    options = SearchOptions(strategy="words", rollouts=12, early_stop=False)
    job = ReasoningJob(question="1 + 1?", options=options)
    plan = make_plan(job, ToyRuntime())
    tree = run_search(job, plan, ToyRuntime(), Journal()).search.tree
    cut = [n for n in tree.nodes if n.action == "word"]
    assert {n.action for n in tree.nodes} == {Action.ROOT, "word", Action.ANSWER}
    assert any(" " in n.tokens[-1].text for n in cut)
    assert not any(" " in "".join(t.text for t in n.tokens[:-1]) for n in cut)
    assert any(r.start_id for r in tree.rollouts), "it forks below the root"
    # What is stored is read, and generated again, by the name.
    assert SearchConfig.from_json(plan.config.to_json()) == plan.config
    again = replay(job, plan, tree.nodes[1:], tree.rollouts, ToyRuntime())
    assert again.same_bits


def token(text: str) -> Token:
    return Token(0, text, -0.1, ((0, -0.1),))


def test_wherever_it_cuts_a_node_begins_with_a_whole_character_and_none_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The second character is two tokens: the one that completes it has its text.
    tokens = [token(text) for text in ("a", "", "é", "b", "</Thought>", "c")]

    def odd(_tokens: Sequence[Token], _size: float) -> Iterator[int]:
        return iter((3, 2, 2, 0, -1, 4, 10**6))

    monkeypatch.setitem(ACTIONS, "word", ActionKind(meaning="at odd places", cuts=odd))
    parts = cut(tokens, "word", 1, MARCO_O1, thought_open=True)
    assert ["".join(t.text for t in part) for _, part in parts] == ["a", "é", "b", "</Thought>c"]
    assert [t for _, part in parts for t in part] == tokens
    assert len(parts[1][1]) == 2
