"""What stored searches reveal about a model: how to sample, weight votes, stop and reflect.

Pure: traces in, findings out. Without labels a rollout is judged by the majority of the other
rollouts of its problem. Enough labels overrule that if their difference is clear.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Any

import numpy as np

from marco_search.errors import CalibrationFailed, InvalidDataSet
from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.grading import Grader, Stops, chosen, cut
from marco_search.evaluation.run import Recipe
from marco_search.evaluation.statistics import Z95, Paired, auroc, mcnemar, paired, wilson
from marco_search.evaluation.traces import Trace, TracedRollout
from marco_search.jobs import SearchOptions
from marco_search.kinds import kind_of
from marco_search.search.votes import Aggregation

FEWEST = 8
"""Minimum problems for a conclusion."""
REWARD = "weakest-line"
"""Reward by which the calibrated strategies weight votes."""
STRATEGIES = ("tree", "adaptive")
"""Strategies that findings apply to; "auto" is one of them."""
SAMPLINGS = ((0.6, 1.0), (1.0, 0.95), (1.0, 1.0))
"""(temperature, top_p) of the fresh thoughts."""
SHARPNESS = (0.0, 1.0, 2.0)
STRONG = 0.7
"""Minimum AUROC for sharply weighted votes."""
LEVELS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.99)
"""Posteriors to stop at. At .6, chosen on 20 questions, 4 in 100 others were answered worse."""
ALIKE = 0.9
"""A share of at least this part of the greatest counts as equal."""
LEAST_ANSWERED = 0.1
"""Minimum share of the rollouts for a conclusion."""
DOUBT = 0.2
"""p of a McNemar test above which reflections away from the majority may be chance."""
LEAST_VALUE = 1e-9


def recipes(options: SearchOptions, rollouts: int, samples: int) -> list[Recipe]:
    """The searches that findings come from: a tree, then independent samples at `SAMPLINGS`.

    None stops early. How votes weigh is decided afterwards, and so held fixed here.
    """
    tree: dict[str, Any] = {
        "rollouts": rollouts,
        "reflection": "branch",
        "stop": 0.7,
        "sharpness": 1.0,
    }
    tree |= {"spread": 1.0, "reference": 0.0}
    drawn: dict[str, Any] = {"rollouts": samples, "reflection": "never"}
    return [
        _recipe(options, "tree", tree),
        *(_recipe(options, "vote", drawn | {"temperature": t, "top_p": p}) for t, p in SAMPLINGS),
    ]


def _recipe(options: SearchOptions, strategy: str, fields: dict[str, Any]) -> Recipe:
    overrides = options.overrides | fields | {"reward": REWARD, "early_stop": False}
    return Recipe(options=options.model_copy(update={"strategy": strategy, "overrides": overrides}))


def require_enough(problems: Sequence[Problem]) -> None:
    """Raises InvalidDataSet for too few problems, or for some with more than one good answer."""
    if len(problems) < FEWEST:
        raise InvalidDataSet(
            f"{len(problems)} questions are too few to calibrate on: give at least {FEWEST}, "
            "better 20 or more"
        )
    if not all(kind_of(p.job).one_answer for p in problems):
        raise InvalidDataSet("calibrate needs questions that have one answer each")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Fresh thoughts at one temperature. Shares are of the rollouts."""

    temperature: float
    top_p: float
    rollouts: int
    answered: float  #: share with an answer
    cut_off: float  #: share out of tokens
    distinct: float  #: different answers of a problem / its rollouts with an answer
    agreement: float  #: share whose answer is that of most others of the problem
    tokens: float  #: mean of a rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """The range of the logs of the reward's values, and their predictive value."""

    reference: float  #: the upper quartile among rollouts that agree with the others
    spread: float  #: standard deviation within a problem
    problems: int  #: those with rollouts that agree and others that don't
    auroc: float  #: mean over these of values against agreement; 0.5 without any
    low: float  #: 95 % interval
    high: float
    sharpness: float

    @property
    def conclusive(self) -> bool:
        """Whether there are enough problems to judge the values."""
        return self.problems >= FEWEST // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stopping early, against the same searches run to their end."""

    level: float
    rollouts: int  #: of a full search
    problems: int
    differing: int  #: problems whose answer is another one
    low: float  #: 95 % interval of their share
    high: float
    saved: float  #: share of the tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflection:
    """The thoughts after the reflection phrase, compared with the greedy ones before."""

    redos: int
    answered: int
    changed: int  #: another answer than before
    towards: int  #: of those, the majority's
    away: int  #: from the majority's
    pays: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Whether rollouts have room to end."""

    rollouts: int
    cut_off: int
    at: int  #: tokens at which they were
    usual: int  #: tokens within which 95 % of the others ended
    suggested: int | None  #: to raise `max_new_tokens` to; None: it need not or would not help


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way to sample and to vote. In each problem all have the same tokens to spend."""

    strategy: str  #: "tree" or "vote"
    sampling: int | None  #: index into SAMPLINGS, of "vote"
    sharpness: float
    tokens: float  #: mean of a problem
    right: tuple[bool, ...]  #: of each labelled problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Findings from labels."""

    problems: int
    settings: tuple[Setting, ...]
    best: Setting
    ahead: Paired  #: `best` of what is proposed without labels
    redo: Paired  #: the redo's answers of the greedy thoughts'


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All findings."""

    problems: int
    rollouts: int
    tokens: int
    samplings: tuple[Sampling, ...]
    temperature: float
    top_p: float
    votes: Votes
    stop: Stop
    reflection: Reflection
    length: Length
    labelled: Labelled | None  #: None: too few labels
    strategy: str | None  #: for "auto", where labels say so

    def fields(self) -> dict[str, Any]:
        """The fields of a profile that it sets."""
        table = {
            "reference": round(self.votes.reference, 3),
            "spread": round(self.votes.spread, 3),
            "sharpness": self.votes.sharpness,
            "stop": self.stop.level,
            "reflection": "branch" if self.reflection.pays else "never",
        }
        found: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p}
        found |= {"strategy": self.strategy} if self.strategy else {}
        return found | {"calibration": dict.fromkeys(STRATEGIES, table)}


def findings(
    trees: Sequence[Trace],
    drawn: Sequence[Sequence[Trace]],
    problems: Sequence[Problem],
    error: float = 0.05,
) -> Findings:
    """The findings from the traces of `recipes`, each in the order of `problems`.

    `error` is the share of problems that stopping early may answer otherwise.
    Raises CalibrationFailed if hardly any rollout has an answer.
    """
    everything = [r for run in (trees, *drawn) for t in run for r in t.rollouts]
    _require_answers(everything)
    polls = [Counter(r.answer for t in ts for r in t.answered) for ts in zip(*drawn, strict=True)]
    samplings = [_sampling(i, run, polls) for i, run in enumerate(drawn)]
    at, votes, reflection = _best(samplings), _votes(trees, drawn, polls), _reflection(trees, polls)
    labelled, strategy = _labelled([trees, *drawn], problems, votes), None
    if labelled and labelled.ahead.clear:
        strategy, found = labelled.best.strategy, labelled.best.sampling
        at = at if found is None else found
        votes = replace(votes, sharpness=labelled.best.sharpness) if found is None else votes
    if labelled and labelled.redo.clear:
        reflection = replace(reflection, pays=labelled.redo.difference > 0)
    return Findings(
        problems=len(trees),
        rollouts=len(everything),
        tokens=sum(r.generated for r in everything),
        samplings=tuple(samplings),
        temperature=samplings[at].temperature,
        top_p=samplings[at].top_p,
        votes=votes,
        stop=_stop(_weighed(trees, votes, votes.sharpness), error),
        reflection=reflection,
        length=_length(everything),
        labelled=labelled,
        strategy=strategy,
    )


def _require_answers(rollouts: Sequence[TracedRollout]) -> None:
    n, length = len(rollouts), _length(rollouts)
    if sum(r.answer is not None for r in rollouts) >= n * LEAST_ANSWERED:
        return
    if 2 * length.cut_off > n:
        raise CalibrationFailed(
            f"{length.cut_off} of {n} rollouts were cut off at {length.at} tokens: raise "
            "--set max_new_tokens=N, or give the profile a text in `stops` that ends a turn"
        )
    raise CalibrationFailed(
        f"hardly any of {n} rollouts has an answer that can be read: see with `marco solve` how "
        "the model writes its turn, and give the profile its tags or `answer_starts` "
        "(docs/profiles.md)"
    )


def _sampling(at: int, run: Sequence[Trace], polls: Sequence[Counter[str | None]]) -> Sampling:
    made, answered = [r for t in run for r in t.rollouts], [r for t in run for r in t.answered]
    agreeing = [_agrees(r, poll) for t, poll in zip(run, polls, strict=True) for r in t.answered]
    return Sampling(
        temperature=SAMPLINGS[at][0],
        top_p=SAMPLINGS[at][1],
        rollouts=len(made),
        answered=len(answered) / len(made),
        cut_off=sum(r.shortfall == "cut_off" for r in made) / len(made),
        distinct=sum(len({r.answer for r in t.answered}) for t in run) / max(1, len(answered)),
        agreement=sum(map(bool, agreeing)) / len(made),
        tokens=sum(r.generated for r in made) / len(made),
    )


def _agrees(
    rollout: TracedRollout, poll: Counter[str | None], *, polled: bool = True
) -> bool | None:
    """Whether its answer is the majority's among the samples; None: no answer has two votes.

    Its own vote is left out, if it is among those `polled`.
    """
    others = poll - Counter([rollout.answer] if polled else [])
    most = max(others.values(), default=0)
    return others[rollout.answer] == most if most > 1 else None


def _best(samplings: Sequence[Sampling]) -> int:
    """The sampling with the most different answers among those that stay accurate.

    These yield an answer, and the majority's answer, about as often as the best one.
    """
    answered, agreement = (max(getattr(s, n) for s in samplings) for n in ("answered", "agreement"))
    fit = [s.answered >= ALIKE * answered and s.agreement >= ALIKE * agreement for s in samplings]
    return max(range(len(samplings)), key=lambda i: (fit[i], samplings[i].distinct))


def _votes(
    trees: Sequence[Trace],
    drawn: Sequence[Sequence[Trace]],
    polls: Sequence[Counter[str | None]],
) -> Votes:
    agreeing, squares, count, found = list[float](), 0.0, 0, list[float]()
    for tree, poll, *samples in zip(trees, polls, *drawn, strict=True):
        within = []
        for trace in (tree, *samples):
            logs = [math.log(max(r.weight, LEAST_VALUE)) for r in trace.answered]
            agrees = [_agrees(r, poll, polled=trace is not tree) for r in trace.answered]
            agreeing += [x for x, agree in zip(logs, agrees, strict=True) if agree]
            if len(logs) > 1:
                squares += float(np.var(logs)) * len(logs)
                count += len(logs) - 1
            if None not in agrees and (one := auroc(logs, list(map(bool, agrees)))) is not None:
                within.append(one)
        if within:
            found.append(sum(within) / len(within))
    mean, low, high = _interval(found)
    return Votes(
        reference=min(0.0, float(np.quantile(agreeing, 0.75))) if agreeing else 0.0,
        spread=max(0.01, math.sqrt(squares / count)) if count else 1.0,
        problems=len(found),
        auroc=mean,
        low=low,
        high=high,
        sharpness=SHARPNESS[0 if low <= 0.5 else 1 if mean < STRONG else 2],
    )


def _interval(shares: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval, by the normal distribution; the whole range for a few."""
    if len(shares) < FEWEST // 2:
        return 0.5, 0.0, 1.0
    mean, half = float(np.mean(shares)), Z95 * float(np.std(shares, ddof=1)) / len(shares) ** 0.5
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def _weighed(traces: Sequence[Trace], votes: Votes, sharpness: float) -> list[Trace]:
    """The same searches with values weighed on the model's scale."""
    weighted, at, spread = str(Aggregation.WEIGHTED), votes.reference, votes.spread
    return [
        replace(t, choice=weighted, reference=at, spread=spread, sharpness=sharpness)
        for t in traces
    ]


def _stop(trees: Sequence[Trace], error: float) -> Stop:
    """The lowest level that keeps to `error`, as all above it do; else the highest."""
    stops, whole = Stops(trees), [chosen(t) for t in trees]

    def at(level: float) -> tuple[int, list[Trace]]:
        short = cut(trees, stops.lengths(level))
        return sum(map(operator.ne, map(chosen, short), whole)), short

    kept = takewhile(lambda level: at(level)[0] <= error * len(trees), reversed(LEVELS))
    level = min(kept, default=LEVELS[-1])
    differing, short = at(level)
    low, high = wilson(differing, len(trees))
    return Stop(
        level=level,
        rollouts=max(len(t.rollouts) for t in trees),
        problems=len(trees),
        differing=differing,
        low=low,
        high=high,
        saved=1 - sum(t.tokens for t in short) / sum(t.tokens for t in trees),
    )


def _reflection(trees: Sequence[Trace], polls: Sequence[Counter[str | None]]) -> Reflection:
    """It pays off if reflections finish, change answers, and do not leave the majority's."""
    pairs = [
        (t.rollouts[0], redo, poll)
        for t, poll in zip(trees, polls, strict=True)
        if (redo := redo_of(t))
    ]
    ended = [pair for pair in pairs if pair[1].answer is not None]
    changed = [pair for pair in ended if pair[0].answer != pair[1].answer]
    towards = sum(_agrees(redo, poll, polled=False) is True for _, redo, poll in changed)
    away = sum(_agrees(first, poll, polled=False) is True for first, _, poll in changed)
    return Reflection(
        redos=len(pairs),
        answered=len(ended),
        changed=len(changed),
        towards=towards,
        away=away,
        pays=2 * len(ended) >= len(pairs) > 0
        and bool(changed)
        and (towards >= away or mcnemar(towards, away) > DOUBT),
    )


def redo_of(tree: Trace) -> TracedRollout | None:
    """The first rollout after the reflection phrase."""
    return next((r for r in tree.rollouts if r.redo), None)


def _length(rollouts: Sequence[TracedRollout]) -> Length:
    cut_off = [r.generated for r in rollouts if r.shortfall == "cut_off"]
    ended = [r.generated for r in rollouts if r.shortfall != "cut_off"]
    at, usual = max(cut_off, default=0), int(np.quantile(ended, 0.95)) if ended else 0
    # If the others need far less, a higher limit would only be filled with repetition.
    helps = len(cut_off) > 0.1 * len(rollouts) and 2 * usual > at
    return Length(
        rollouts=len(rollouts),
        cut_off=len(cut_off),
        at=at,
        usual=usual,
        suggested=2 * at if helps else None,
    )


def _labelled(
    runs: Sequence[Sequence[Trace]], problems: Sequence[Problem], votes: Votes
) -> Labelled | None:
    known = [i for i, p in enumerate(problems) if p.expected]
    if len(known) < FEWEST:
        return None
    grader, (trees, *drawn) = Grader(problems), [[run[i] for i in known] for run in runs]
    room = [min(t.tokens for t in same) for same in zip(trees, *drawn, strict=True)]

    def setting(
        strategy: str, run: Sequence[Trace], sharpness: float, sampling: int | None = None
    ) -> Setting:
        within = [_within(t, n) for t, n in zip(_weighed(run, votes, sharpness), room, strict=True)]
        return Setting(
            strategy=strategy,
            sampling=sampling,
            sharpness=sharpness,
            tokens=sum(t.tokens for t in within) / len(within),
            right=tuple(map(grader.solved, within)),
        )

    settings = [setting("tree", trees, sharpness) for sharpness in SHARPNESS]
    settings += [setting("vote", run, 0.0, i) for i, run in enumerate(drawn)]
    proposed = next(s for s in settings if s.sharpness == votes.sharpness)
    best = max([proposed, *settings], key=lambda s: sum(s.right))
    redone = [(t, redo) for t in trees if (redo := redo_of(t))]
    return Labelled(
        problems=len(known),
        settings=tuple(settings),
        best=best,
        ahead=paired(best.right, proposed.right),
        redo=paired(
            [grader.right(t.key, redo.answer, t.answers) for t, redo in redone],
            [grader.right(t.key, t.rollouts[0].answer, t.answers) for t, _ in redone],
        ),
    )


def _within(trace: Trace, tokens: int) -> Trace:
    """The search up to so many tokens, one rollout at least."""
    spent = accumulate(r.generated for r in trace.rollouts)
    (short,) = cut([trace], [max(1, sum(n <= tokens for n in spent))])
    return short
