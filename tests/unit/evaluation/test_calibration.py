"""What `calibration.findings` says of made-up models: sharp, flat, without redos, cut off."""

from __future__ import annotations

from itertools import count

import pytest

from marco_search import profiles
from marco_search.errors import CalibrationFailed, InvalidDataSet
from marco_search.evaluation.calibration import Findings, findings, require_enough
from marco_search.evaluation.data_sets import Problem, from_row
from marco_search.evaluation.traces import Trace, TracedRollout

RIGHT = "7"
SHARP = ((RIGHT, 0.9), (RIGHT, 0.8), (RIGHT, 0.85), (None, 0.1))
"""Answer and value of each sample; None is an answer that no other has."""
FLAT = ((RIGHT, 1e-4), (RIGHT, 1e-9), (RIGHT, 1e-6), (None, 1e-5))
_other = count(100)


def problems(n: int = 12, *, labels: bool = False) -> list[Problem]:
    rows = [
        {"question": f"How many are {i}?"} | ({"answer": 7} if labels else {}) for i in range(n)
    ]
    return [from_row(row, "row") for row in rows]


def rollout(
    answer: str | None,
    value: float,
    *,
    redo: bool = False,
    at: int = 1,
    shortfall: str | None = None,
) -> TracedRollout:
    return TracedRollout(
        answer=answer, round=at, start=0, path=(0, at), generated=20, prompt=5, cached=0,
        confidence=value, path_confidence=value, value=value, redo=redo, shortfall=shortfall,
    )  # fmt: skip


def trace(problem: Problem, rollouts: list[TracedRollout]) -> Trace:
    return Trace(
        key=problem.key, run="run", choice="weighted", sharpness=1.0, stop_reason="rollouts",
        seconds=1.0, answers={r.answer: r.answer for r in rollouts if r.answer},
        rollouts=tuple(rollouts), reward="weakest-line",
    )  # fmt: skip


def found(
    kind: tuple[tuple[str | None, float], ...],
    *,
    redo: str | None = RIGHT,
    greedy: str = "8",
    labels: bool = False,
) -> Findings:
    """The findings on a model whose samples are `kind` in each problem."""
    asked = problems(labels=labels)

    def drawn(problem: Problem) -> Trace:
        made = [rollout(a or str(next(_other)), v, at=i) for i, (a, v) in enumerate(kind, start=1)]
        return trace(problem, made)

    def tree(problem: Problem) -> Trace:
        forks = [rollout(RIGHT, kind[0][1], at=i) for i in range(3, 8)]
        reflected = rollout(
            redo, kind[1][1], redo=True, at=2, shortfall=None if redo else "cut_off"
        )
        return trace(problem, [rollout(greedy, kind[3][1]), reflected, *forks])

    return findings([tree(p) for p in asked], [[drawn(p) for p in asked]] * 3, asked)


def test_a_sharp_model_weighs_its_votes_and_reflects() -> None:
    sharp = found(SHARP)
    assert (sharp.votes.sharpness, sharp.reflection.pays) == (2.0, True)
    assert -0.3 < sharp.votes.reference < 0.0
    assert sharp.labelled is None
    assert sharp.stop.differing == 0 and 0 < sharp.stop.saved < 1


def test_values_that_say_nothing_leave_a_plain_majority() -> None:
    flat = found(FLAT)
    assert flat.votes.sharpness == 0.0 and flat.votes.spread > 3
    # It still stops early: the level is one of votes that all count in full.
    assert flat.stop.saved > 0


@pytest.mark.parametrize(("redo", "greedy"), [(None, "8"), ("8", RIGHT), (RIGHT, RIGHT)])
def test_redos_that_never_end_or_mislead_or_change_nothing_do_not_pay(
    redo: str | None, greedy: str
) -> None:
    assert not found(SHARP, redo=redo, greedy=greedy).reflection.pays


def test_labels_that_are_clear_go_first() -> None:
    assert found(SHARP, labels=True).labelled is not None
    # Away from the majority, and yet right.
    wrong = tuple((a and "9", v) for a, v in SHARP)
    assert found(wrong, redo=RIGHT, greedy="9", labels=True).reflection.pays
    assert not found(wrong, redo=RIGHT, greedy="9").reflection.pays


def test_a_model_that_is_cut_off_or_can_not_be_read_is_refused() -> None:
    asked = problems()
    for shortfall, words in (("cut_off", "cut off at 20 tokens: raise"), ("unanswered", "tags")):
        run = [trace(p, [rollout(None, 0.0, shortfall=shortfall)] * 4) for p in asked]
        with pytest.raises(CalibrationFailed, match=words):
            findings(run, [run] * 3, asked)


def test_too_few_questions_or_some_with_many_good_answers_are_refused() -> None:
    with pytest.raises(InvalidDataSet, match="at least 8"):
        require_enough(problems(7))
    essays = [from_row({"prompt": f"Write {i}"}, "row") for i in range(9)]
    with pytest.raises(InvalidDataSet, match="one answer"):
        require_enough(essays)


def test_a_profile_takes_what_was_found() -> None:
    made = profiles.override(profiles.load("neutral"), found(FLAT).fields())
    again = profiles.parse(profiles.dumps(made), "file")
    assert again.search_fields("auto")["sharpness"] == 0.0
    assert "sharpness" not in again.search_fields("vote")
