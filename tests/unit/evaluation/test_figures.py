"""Curves, rescoring and the report's rows, on traces whose figures are known by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from marco_search.cli.evaluation_commands import report_text
from marco_search.engine import Journal, make_plan, run_search, search_job
from marco_search.errors import InvalidDataSet
from marco_search.evaluation import traces
from marco_search.evaluation.data_sets import Problem, from_row
from marco_search.evaluation.grading import (
    VOTES,
    Grader,
    Stops,
    answer_under,
    chosen,
    coverage,
    cut,
    leaf_shares,
    point,
    rescore,
    score,
)
from marco_search.evaluation.report import compare, row
from marco_search.evaluation.run import Recipe, run
from marco_search.evaluation.traces import Trace, TracedRollout, with_vote
from marco_search.jobs import SearchOptions
from marco_search.kinds import OpenEndedJob, kind_of
from marco_search.search.rewards import EXTERNAL, REWARDS, TokenScores
from marco_search.search.tree import ROOT
from tests.toy import ToyRuntime

ROWS = [{"question": "two and two?", "answer": 4}, {"question": "two and three?", "answer": 5}]
PROBLEMS: list[Problem] = [from_row(r, "row") for r in ROWS]
GRADER = Grader(PROBLEMS)


def traced(key: str, answers: list[tuple[str | None, float]], choice: str = "vote") -> Trace:
    """Flat samples with the given answers and confidences, 10 tokens each, one node each."""
    return Trace(
        key=key,
        run="r",
        choice=choice,
        sharpness=1.0,
        stop_reason="rollouts",
        seconds=2.0,
        answers={a: f"The answer is {a}." for a, _ in answers if a},
        rollouts=tuple(
            TracedRollout(
                answer=a,
                round=1,
                start=ROOT,
                path=(0, i + 1),
                generated=10,
                prompt=20,
                cached=15,
                confidence=c,
                path_confidence=c,
            )
            for i, (a, c) in enumerate(answers)
        ),
        scores=(
            TokenScores(c=(), logprob=(), mean_top=(), line_ends=()),
            *(
                TokenScores(c=(c, c), logprob=(-1, -1), mean_top=(-3, -5), line_ends=(False, True))
                for _, c in answers
            ),
        ),
    )


FOUR = traced(PROBLEMS[0].key, [("4", 0.6), ("3", 0.9), ("4", 0.5), (None, 0.1)])
FIVE = traced(PROBLEMS[1].key, [("6", 0.5), ("6", 0.4), ("5", 0.99), ("6", 0.4)])


def test_the_vote_equals_the_search(tmp_path: Path) -> None:
    for strategy in ("cot", "vote", "best-of-n", "step"):
        recipe = Recipe(options=SearchOptions(strategy=strategy, rollouts=9, early_stop=False))
        traces = run(PROBLEMS, recipe, ToyRuntime(), tmp_path / f"{strategy}.jsonl")
        for problem, trace in zip(PROBLEMS, traces, strict=True):
            job, runtime = recipe.job(problem), ToyRuntime()
            finished = run_search(job, make_plan(job, runtime), runtime, Journal())
            ranked = finished.search.ranked()
            found = chosen(trace)
            assert found == (ranked[0].key if ranked else None)


def test_one_run_is_cut_into_smaller_ones() -> None:
    points = [point([FOUR, FIVE], GRADER, n) for n in range(1, 5)]
    assert [p.tokens_per_problem for p in points] == [10, 20, 30, 40]
    assert [p.right for p in points] == [
        (True, False),
        (False, False),
        (True, False),
        (True, False),
    ]
    best = with_vote([FOUR, FIVE], "best")
    assert [point(best, GRADER, n).accuracy for n in range(1, 5)] == [0.5, 0.0, 0.5, 0.5]


def test_a_run_cut_at_a_looser_stop_is_the_run_that_was_given_it(tmp_path: Path) -> None:
    def traces(stop: float) -> list[Trace]:
        recipe = Recipe(options=SearchOptions(strategy="tree", overrides={"stop": stop}))
        return run(PROBLEMS, recipe, ToyRuntime(), tmp_path / f"{stop}.jsonl")

    stops = Stops(traces(0.9))
    for stop in (0.55, 0.65, 0.75):
        at, mine = stops.at(GRADER, stop), traces(stop)
        assert list(at.tokens) == [t.tokens for t in mine]
        assert list(at.right) == list(map(GRADER.solved, mine))


def test_a_budget_is_met_from_below_or_from_above() -> None:
    apart = [
        replace(t, rollouts=tuple(replace(r, round=i) for i, r in enumerate(t.rollouts)))
        for t in (FOUR, FIVE)
    ]
    stops = Stops(apart)
    spent = sorted({stops.tokens_per_problem(level / 10) for level in range(40)})
    assert len(spent) > 2
    for budget in (spent[1], spent[1] + 0.5):
        below = stops.tokens_per_problem(stops.level_for(budget))
        above = stops.tokens_per_problem(stops.level_for(budget, at_least=True))
        assert below <= budget <= above
    assert stops.tokens_per_problem(stops.level_for(1e9, at_least=True)) == spent[-1]


def test_a_run_is_a_prefix_of_a_longer_run(tmp_path: Path) -> None:
    for strategy in ("vote", "step", "mini-step-32"):

        def traces(n: int, strategy: Any = strategy) -> list[Trace]:
            options = SearchOptions(strategy=strategy, rollouts=n, early_stop=False)
            file = tmp_path / f"{strategy}-{n}.jsonl"
            return run(PROBLEMS, Recipe(options=options), ToyRuntime(), file)

        whole = traces(13)
        for n in (1, 5, 8, 11):
            for long, short in zip(whole, traces(n), strict=True):
                assert long.rollouts[:n] == short.rollouts


def test_coverage_is_a_right_rollout_among_the_first() -> None:
    assert coverage([FOUR, FIVE], GRADER, 1) == (True, False)
    assert coverage([FOUR, FIVE], GRADER, 3) == (True, True)


def test_rescoring_under_another_reward_and_vote() -> None:
    def found(reward: str, vote: str, sharpness: float = 1.0) -> tuple[bool, ...]:
        return rescore([FOUR, FIVE], GRADER, reward=reward, vote=vote, sharpness=sharpness).right

    assert found("path", "vote") == (True, False)
    assert found("path", "best") == (False, True)
    assert found("path", "weighted") == (True, False)
    assert found("path", "weighted", 8.0) == (False, True)
    assert found("agreement", "weighted") == (True, False)
    assert found("path", "borda", 8.0) == (False, True)


@pytest.mark.parametrize("reward", ["confidence", "rollout", "geometric"])
@pytest.mark.parametrize("choice", ["vote", "weighted", "best"])
def test_its_own_reward_and_vote_give_the_answer_of_the_search(reward: str, choice: str) -> None:
    """Of near-duplicates too, and with weights as a profile has them for its model."""
    scale = {"sharpness": 2.0, "spread": 0.1, "reference": -0.5}
    for seed in range(4):
        options = SearchOptions(
            strategy="step", rollouts=9, seed=seed, reward=reward,
            overrides={"choice": choice} | scale,
        )  # fmt: skip
        job = OpenEndedJob(prompt="A name for a bakery?", options=options)
        done = search_job(job, runtime=ToyRuntime(("Old Mill", "Old Mills", "Loaf", "Crumbs")))
        best = done.search.ranked()[0]
        trace = traces.traced(
            "", job, done.search.tree, config=done.plan.config, keep_tokens=True, run="",
            stop_reason="", seconds=0.0,
        )  # fmt: skip
        found, share = answer_under(
            trace, reward=reward, vote=choice, sharpness=2.0, merge=kind_of(job).merge
        )
        assert found == best.key
        assert share == pytest.approx(best.share, abs=1e-3)


def test_a_tree_vote_counts_draws_not_visits(tmp_path: Path) -> None:
    flat = Recipe(options=SearchOptions(strategy="vote", rollouts=8, early_stop=False))
    (one, two) = run(PROBLEMS, flat, ToyRuntime(), tmp_path / "flat.jsonl")
    for trace in (one, two):
        shares = leaf_shares(trace)
        assert sum(shares.values()) == pytest.approx(1.0)
        for leaf, share in shares.items():
            ended = sum(r.path[-1] == leaf for r in trace.rollouts)
            assert share == pytest.approx(ended / 8)
    # Two draws at the root; three more below the first, all to another leaf than its own.
    nodes = [(0, 1, 2), (0, 3), (0, 1, 4), (0, 1, 4), (0, 1, 4)]
    starts = [0, 0, 1, 1, 1]
    base = FOUR.rollouts[0]
    grown = replace(
        FOUR,
        rollouts=tuple(
            replace(base, path=p, start=s, answer=a)
            for p, s, a in zip(nodes, starts, ["3", "4", "3", "3", "3"], strict=True)
        ),
    )
    shares = leaf_shares(grown)
    assert shares == pytest.approx({2: 1 / 2 / 4, 3: 1 / 2, 4: 1 / 2 * 3 / 4})


def test_confidence_leaves_out_what_was_reconsidered(tmp_path: Path) -> None:
    recipe = Recipe(
        options=SearchOptions(strategy="vote", rollouts=6, reflection="always"), keep_tokens=True
    )
    for trace in run(PROBLEMS, recipe, ToyRuntime(["4", "5"]), tmp_path / "run.jsonl"):
        for r in trace.rollouts:
            at = [i for i in r.path if i and not trace.scores[i].c]
            assert len(at) == 1
            after = [c for i in r.path[r.path.index(at[0]) :] for c in trace.scores[i].c]
            assert score(trace, r, "confidence") == pytest.approx(sum(after) / len(after))


def test_rewards_have_their_formulas() -> None:
    trace, first = FOUR, FOUR.rollouts[0]
    assert score(trace, first, "path") == pytest.approx(0.6)
    assert score(trace, first, "minimum") == 0.6
    assert score(trace, first, "product") == pytest.approx(0.36)
    assert score(trace, first, "geometric") == pytest.approx(0.6)
    assert score(trace, first, "group") == pytest.approx(4 / 5)  # C = 4 of 3 and 5
    assert score(trace, first, "certainty") == pytest.approx(4 / 5)
    assert score(trace, first, "agreement") == pytest.approx(1 / 3)


def test_every_reward_scores_a_real_tree(tmp_path: Path) -> None:
    recipe = Recipe(options=SearchOptions(rollouts=8), keep_tokens=True)
    traces = run(PROBLEMS, recipe, ToyRuntime(["4", "5"]), tmp_path / "run.jsonl")
    for name in REWARDS.keys() - EXTERNAL:
        assert all(0 <= score(t, r, name) <= 1 for t in traces for r in t.rollouts), name
        for vote in VOTES:
            assert rescore(traces, GRADER, reward=name, vote=vote).n == 2
    for trace in traces:
        for r in trace.rollouts:
            assert score(trace, r, "confidence") == pytest.approx(r.path_confidence, abs=1e-4)
            assert score(trace, r, "rollout") == pytest.approx(r.confidence, abs=1e-4)


def test_rescoring_errors(tmp_path: Path) -> None:
    bare = run(PROBLEMS, Recipe(), ToyRuntime(), tmp_path / "run.jsonl")
    with pytest.raises(InvalidDataSet, match="--trees"):
        rescore(bare, GRADER, reward="minimum")
    with pytest.raises(InvalidDataSet, match="use a reward of confidence"):
        rescore(bare, GRADER, reward="nice")


def test_a_row_has_the_figures_of_its_run() -> None:
    found = row("vote", [FOUR, FIVE], GRADER)
    assert (found.n, found.accuracy, found.right) == (2, 0.5, (True, False))
    assert (found.tokens_per_problem, found.rollouts) == (40, 4)
    assert (found.prefilled_per_problem, found.cached_per_problem) == (20, 60)
    assert found.separate_guesses and found.test_at == {}
    short = row("vote", cut([FOUR, FIVE], [2, 2]), GRADER)
    assert (short.accuracy, short.tokens_per_problem) == (0.0, 20)
    # Right rollouts: .6 .5 .99; wrong: .9 .5 .4 .4
    assert found.auroc_rollouts == pytest.approx((3 + 2.5 + 4) / 12)
    assert found.to_json()["low"] == round(found.low, 4)


def test_test_at_8() -> None:
    answers: list[tuple[str | None, float]] = [*[("3", 0.5)] * 15, ("4", 0.5)]
    trace = traced(PROBLEMS[0].key, answers)
    assert row("vote", [trace], GRADER).test_at == {"8": 0.5, "16": 1.0}


def test_a_problem_without_a_label_is_not_a_wrong_one() -> None:
    grader = Grader([PROBLEMS[0], from_row({"question": "two and three?"}, "row")])
    found = row("vote", [FOUR, FIVE], grader)
    assert (found.problems, found.n, found.accuracy, found.right) == (2, 1, 1.0, (True,))
    assert (found.tokens_per_problem, found.rollouts) == (40, 4)
    both = compare([FOUR, FIVE], [FOUR, FIVE], grader)
    assert (both["accuracy"]["n"], both["accuracy"]["only_second"]) == (1, 0)
    longer = [replace(FOUR, run="other", rollouts=FOUR.rollouts * 2), FOUR]  # in one file
    assert compare([FOUR], longer, grader)["tokens"]["ratio"] == 0.5
    none = row("vote", [FIVE], grader)
    assert none.n == 0 and none.to_json()["accuracy"] is none.to_json()["test_at"]["1"] is None
    data = {"set": "a", "budget": {}, "seed": 0, "date": "", "version": "1", "resumed": 0}
    assert "| vote |  |  |" in report_text(none, data, [FIVE])
