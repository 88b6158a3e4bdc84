"""Open-ended jobs: which outputs are one solution."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from marco_search.engine import solve
from marco_search.jobs import SearchOptions
from marco_search.kinds import OpenEndedJob, kind_of
from marco_search.kinds.answers.normalization import text_key
from marco_search.kinds.open_ended import NEAR, cluster, similarity, trigrams
from marco_search.search.branches import Message
from tests.toy import ToyRuntime

JOB = OpenEndedJob(prompt="How can I remember my passwords?", expected="secret")
KIND = kind_of(JOB)

MANAGER = "Use a password manager and remember one long main password."
MANAGER_TOO = "Use a password manager, and remember just one long main password!"
PHRASES = "Make each password from the first letters of a sentence that you know by heart."
PAPER = "Write them down on paper and keep the paper in a safe at home."


def test_prompt_is_the_prompt_alone() -> None:
    assert KIND.messages(JOB) == [Message(role="user", content=JOB.prompt)]


def test_near_duplicates_are_one_solution() -> None:
    outputs = [(PHRASES, 0.5), (MANAGER_TOO, 0.7), (PAPER, 0.6), (MANAGER, 0.9)]
    assert cluster(outputs) == [[3, 1], [2], [0]]


def test_chinese_needs_no_word_boundaries() -> None:
    a = "使用密码管理器，只记住一个很长的主密码。"
    b = "使用密码管理器，只需记住一个很长的主密码。"
    c = "把密码写在纸上，锁进家里的保险箱。"
    assert cluster([(a, 0.5), (b, 0.4), (c, 0.3)]) == [[0, 1], [2]]


def test_merge_names_a_cluster_by_its_most_confident_member() -> None:
    keys = {text: KIND.read(text).key for text in (MANAGER, MANAGER_TOO, PAPER)}  # type: ignore[union-attr]
    pairs = [(keys[MANAGER_TOO], 0.2), (keys[PAPER], 0.5), (keys[MANAGER], 0.9), (keys[PAPER], 0.1)]
    assert KIND.merge(pairs) == [keys[MANAGER], keys[PAPER], keys[MANAGER], keys[PAPER]]


def test_an_answer_has_the_key_of_its_own_text_also_among_equals() -> None:
    names = ("The Old Mill bakery", "The Old Mill bakers", "Crumbs")
    for seed in range(6):
        options = SearchOptions(strategy="vote", reward="minimum", seed=seed)
        job = OpenEndedJob(prompt="A name for a bakery?", options=options)
        for answer in solve(job, runtime=ToyRuntime(names, steps=(0, 1))).answers:
            assert answer.normalised == text_key(answer.text)


def test_nothing_to_cluster() -> None:
    assert cluster([]) == []
    assert KIND.merge([]) == []
    assert KIND.read(" . ") is None


def test_equal_allows_for_small_differences() -> None:
    assert KIND.equal(MANAGER, MANAGER_TOO)
    assert not KIND.equal(MANAGER, PAPER)


OUTPUTS = st.lists(
    st.tuples(st.text("abc 你好", max_size=12), st.sampled_from([0.1, 0.5, 0.9])), max_size=8
)


@given(OUTPUTS, st.integers(0, 99))
def test_order_does_not_matter(outputs: list[tuple[str, float]], seed: int) -> None:
    order = list(range(len(outputs)))
    Random(seed).shuffle(order)
    shuffled = cluster([outputs[i] for i in order])
    again = {frozenset(outputs[order[i]] for i in group) for group in shuffled}
    assert again == {frozenset(outputs[i] for i in group) for group in cluster(outputs)}


@given(OUTPUTS)
def test_every_output_is_in_one_group_led_by_its_best(outputs: list[tuple[str, float]]) -> None:
    groups = cluster(outputs)
    assert sorted(i for group in groups for i in group) == list(range(len(outputs)))
    for group in groups:
        assert outputs[group[0]][1] == max(outputs[i][1] for i in group)
    leaders = [trigrams(text_key(outputs[group[0]][0])) for group in groups]
    for i, a in enumerate(leaders):
        assert all(similarity(a, b) < NEAR for b in leaders[:i])
