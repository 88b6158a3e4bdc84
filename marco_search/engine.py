"""Runs one search: plan it, run its rounds against a runtime, store each round, rank.

The same loop serves the library call (`solve`, whose journal stores nothing) and the worker,
whose journal is Postgres. If the journal already holds rounds, the search continues from them.

    from marco_search import solve
    print(solve("Tom has 3 apples and buys 5 more. How many apples does Tom have now?").answer)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Unpack

from marco_search import metrics, profiles
from marco_search import settings as settings_module
from marco_search.errors import (
    AnotherVersion,
    BranchFailed,
    InvalidJob,
    InvalidProfile,
    InvalidSettings,
    ModelRefused,
    PromptTooLong,
    RuntimeUnavailable,
    SearchError,
)
from marco_search.jobs import Answer, Job, JobResult, JobState, SearchOptions, SearchOptionsDict
from marco_search.jobs.validation import shown, unstorable
from marco_search.kinds import ReasoningJob, checked, kind_of, parse_job
from marco_search.profiles import Profile
from marco_search.runtime import open_runtime
from marco_search.runtime.base import Render, Runtime
from marco_search.runtime.chat import compile_template
from marco_search.scorers import Aborted, Outcome, Output, Scorer, open_scorer
from marco_search.search.actions import Action
from marco_search.search.branches import Branch, Expansion, Finish, Message, without_room
from marco_search.search.budgets import StopReason
from marco_search.search.config import ReflectionPolicy, SearchConfig, configure, gone_from
from marco_search.search.mcts import Search
from marco_search.search.tree import Round, Shortfalls, Tree

log = logging.getLogger(__name__)

PATIENCE = 4
"""Rollouts without a new answer after which a search with many valid answers ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """All that determines a search, wherever and however often it runs: enough to replay it."""

    config: SearchConfig
    prompt: str  #: rendered, up to where the model continues
    model: str
    revision: str
    gone: tuple[str, ...] = ()  #: unsupported fields of an earlier version's plan

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same plan back."""
        plain = {"prompt": self.prompt, "model": self.model, "revision": self.revision}
        return plain | {"config": self.config.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SearchPlan:
        """The plan written by `to_json`."""
        config = data["config"]
        read = {"config": SearchConfig.from_json(config), "gone": gone_from(config)}
        return cls(**data | read)


def stored(
    payload: Mapping[str, Any], plan: dict[str, Any] | None
) -> tuple[Job, SearchPlan | None]:
    """A job and its plan from what Postgres holds. Raises AnotherVersion.

    Both were valid when they were stored.
    """
    try:
        return parse_job(payload), SearchPlan.from_json(plan) if plan else None
    except (InvalidJob, SearchError, TypeError, ValueError, KeyError) as error:
        raise AnotherVersion(
            f"another version of marco-search wrote this job, and this one can't read it: {error}"
        ) from None


class Journal:
    """Where the rounds of a search are stored. This class stores none: for searches in memory."""

    def load(self) -> tuple[Tree, float]:
        """The tree that earlier attempts have stored, and the seconds that they took."""
        return Tree(), 0.0

    def append(self, kept: Round, texts: Mapping[int, str], *, last: bool) -> None:
        """Store one round, all of it or nothing. Raises LeaseLost if another worker has the job.

        `texts` has the texts of its candidates by token id. The `last` round ends the search
        and may be stored together with the outcome.
        """

    def should_stop(self) -> StopReason | None:
        """A reason to end the search, if any. Called before each round and when branches failed."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSearch:
    """A search that has ended, and how long all its attempts took, in seconds."""

    plan: SearchPlan
    search: Search
    seconds: float


def profile_of(options: SearchOptions, model: str) -> Profile:
    """The profile for a job on a model, with the overrides of settings and job applied.

    Raises InvalidProfile if the job's choice is wrong, InvalidSettings if that of the settings is.
    """
    settings = settings_module.load()
    name, own = options.profile or settings.profile, settings.profiles
    try:
        found = profiles.load(name, own) if name else profiles.chosen(model, own)
    except InvalidProfile as error:
        if options.profile:
            raise
        place = "MARCO_PROFILE: " if name else ""
        raise InvalidSettings(f"{place}{error}") from None
    try:
        found = profiles.override(found, settings.overrides)
    except InvalidProfile as error:
        raise InvalidSettings(f"MARCO_OVERRIDES: {error}") from None
    return profiles.override(found, options.overrides)


_OF_REWARD = ("reward", "verifier", "sharpness", "spread", "reference")


def make_plan(job: Job, runtime: Runtime) -> SearchPlan:
    """The plan of a job on the model behind `runtime`. Raises InvalidProfile, InvalidJob.

    A job's option at its default counts as not given: the profile takes precedence.
    """
    kind, options, info = kind_of(job), job.options, runtime.info
    profile = profile_of(options, info.model)
    given = {"answer_width": kind.answer_width} | profile.search_fields(options.strategy)
    if not kind.one_answer:
        # Where many answers are valid there is nothing to correct.
        given["reflection"] = ReflectionPolicy.NEVER
    apart = {"answers", "strategy", "profile", "overrides"}
    own = options.model_dump(exclude=apart, exclude_defaults=True)
    for layer in (own, {n: v for n, v in options.overrides.items() if n in profiles.SEARCH_FIELDS}):
        if layer.keys() & {"reward", "verifier"}:  # the profile's values are for another reward
            given = {n: v for n, v in given.items() if n not in _OF_REWARD}
        given |= layer
    config = configure(**given)
    if not kind.one_answer:
        config = replace(config, stop=None, patience=PATIENCE if config.early_stop else None)
    if profile.steps == "sentence" and config.action == Action.STEP:
        config = replace(config, action=Action.SENTENCE)
    config = replace(
        config,
        max_new_tokens=min(config.max_new_tokens, info.context_tokens),
        turn=profile.turn(profiles.language_of(kind.user_turn(job))),
        profile=profile.label,
    )
    prompt = _prompt(job, profile, runtime)
    if (opening := config.turn.opening) and not prompt.rstrip().endswith(opening.rstrip()):
        prompt += opening
    if problem := unstorable(prompt):
        raise InvalidJob("prompt", problem)
    return SearchPlan(config=config, prompt=prompt, model=info.model, revision=info.revision)


def _prompt(job: Job, profile: Profile, runtime: Runtime) -> str:
    """The rendered chat prompt, up to the model's turn."""
    examples = [(e.user, e.assistant) for e in profile.examples]
    messages = kind_of(job).messages(job, profile.system_prompt, examples)
    own = runtime.render if runtime.info.own_template else None
    return rendered(messages, profile, own, runtime.info.model)


def rendered(messages: Sequence[Message], profile: Profile, own: Render | None, model: str) -> str:
    """A chat up to the model's turn, by the model's `own` template or the profile's."""
    template = profile.chat_template
    if template == "model":
        if own:
            return own(messages, profile.template_options)
        template = profile.fallback_template
        if not template:
            _warn_of_chatml(model, profile.name)
    return compile_template(template or "chatml")(messages, profile.template_options)


@lru_cache
def _warn_of_chatml(model: str, profile: str) -> None:
    """Warn once per process: a guessed prompt format costs accuracy without any other sign."""
    log.warning(
        "the chat template of %s can't be had and profile %s has none: prompts are in ChatML. Set "
        "MARCO_MODEL to a folder with the model's tokenizer_config.json",
        model,
        profile,
    )


def require_same(plan: SearchPlan, runtime: Runtime) -> None:
    """Raises ModelRefused unless the runtime has the model that the search was planned on.

    Raises SearchError for a plan of an earlier version that this one does not support.
    """
    if plan.gone:
        raise SearchError(
            f"the search was planned by an earlier version ({', '.join(plan.gone)}), and only that "
            "version can continue or replay it; marco requeue --restart starts it again"
        )
    info = runtime.info
    if (info.model, info.revision) != (plan.model, plan.revision):
        raise ModelRefused(
            f"the job was searched with {plan.model} at revision {plan.revision[:12]}, this "
            f"runtime has {info.model} at {info.revision[:12]}: the same weights are needed; set "
            "MARCO_RUNTIME and MARCO_MODEL to them"
        )


def run_search(
    job: Job,
    plan: SearchPlan,
    runtime: Runtime,
    journal: Journal,
    *,
    on_round: Callable[[Search], None] | None = None,
) -> FinishedSearch:
    """Run the job's search to its end, continuing from what the journal holds.

    `on_round` is called after each stored round. Raises RuntimeUnavailable when every branch
    of a round failed (the round is not stored), ModelRefused when the model is not the
    plan's, NotOffered or InvalidSettings when its reward model or verifier is not set up here,
    and what the runtime and the journal raise.
    """
    require_same(plan, runtime)
    tree, seconds = journal.load()
    search = restore_search(job, plan, tree)
    scorer = open_scorer(plan.config, tree.rollouts)
    began = time.monotonic() - seconds

    def stopped() -> bool:
        reason = journal.should_stop()
        if reason:
            search.stop(reason)
        return reason is not None

    def next_round() -> list[Expansion]:
        stopped()
        return search.ask(time.monotonic() - began)

    expansions = next_round()
    while expansions:
        branches: Sequence[Branch] = runtime.branch(expansions)
        if any(b.finish is Finish.FAILED for b in branches):
            # They may have failed because the search was to stop (`Runtime.abort`).
            if stopped():
                _drop(branches)
                break
            _refuse_if_all_failed(branches, search.tree)
        if scorer is not None:
            try:
                branches = _scored(scorer, job, plan, expansions, branches)
            except Aborted:
                _drop(branches)
                if stopped():
                    break
                raise RuntimeUnavailable("the scores of a round were aborted") from None
        done = search.tell(branches)
        texts = {i: text for b in branches for i, text in b.texts.items()}
        expansions = next_round()
        journal.append(done, texts, last=not expansions)
        if on_round:
            on_round(search)
        if expansions and stopped():  # as the journal has learnt meanwhile
            break
    return FinishedSearch(plan=plan, search=search, seconds=time.monotonic() - began)


def _drop(branches: Sequence[Branch]) -> None:
    """Count the tokens of a round that is not kept, as the search had to stop."""
    metrics.record(metrics.FAILED_TOKENS, sum(b.generated_tokens for b in branches))


def _refuse_if_all_failed(branches: Sequence[Branch], tree: Tree) -> None:
    """Raises if every branch of the round failed, unless they had no room in the context.

    A prompt that is too long fails the job, a path that has grown too long does not. Nor does a
    single branch in its round, as forks are, unless the one before it failed, too.
    """
    if any(b.finish is not Finish.FAILED for b in branches):
        return
    error = str(branches[0].error)
    if not all(without_room(b.error) for b in branches):
        its_own = len(branches) == 1 and error.startswith(BranchFailed.__name__)
        if its_own and tree.rollouts and tree.rollouts[-1].finish is not Finish.FAILED:
            return
        which = "the branch" if len(branches) == 1 else f"all {len(branches)} branches"
        raise RuntimeUnavailable(f"{which} failed: {error}")
    if all(r.finish is Finish.FAILED for r in tree.rollouts):
        raise PromptTooLong(error.removeprefix(f"{PromptTooLong.__name__}: "))


def _scored(
    scorer: Scorer,
    job: Job,
    plan: SearchPlan,
    expansions: Sequence[Expansion],
    branches: Sequence[Branch],
) -> Sequence[Branch]:
    """The branches; those with an answer get their scores, or the reason why there are none."""
    kind, turn, outputs = kind_of(job), plan.config.turn, dict[int, Output]()
    before = {r.branch_id: e.prefix[len(plan.prompt) :] for e in expansions for r in e.branches}
    for b in branches:
        text = turn.opening + before[b.branch_id] + b.continuation(turn)
        answer = kind.answer(text, turn) if b.finish is Finish.STOP else None
        if answer is not None:
            outputs[b.branch_id] = Output(
                kind=job.kind,
                question=kind.user_turn(job),
                metadata=job.metadata,
                key=answer.key,
                answer=answer.display,
                output=kind.output(text, turn) or answer.display,
                thought=kind.thought(text, turn),
            )
    found = dict(zip(outputs, scorer(list(outputs.values())), strict=True))
    return [_with(b, found.get(b.branch_id)) for b in branches]


def _with(branch: Branch, outcome: Outcome | None) -> Branch:
    if isinstance(outcome, str):
        return replace(branch, error=outcome)
    return replace(branch, scores=outcome)


def restore_search(job: Job, plan: SearchPlan, tree: Tree) -> Search:
    """The job's search as it was after the last round in its tree."""
    kind, turn = kind_of(job), plan.config.turn

    def answer_of(text: str) -> str | None:
        return kind.answer_key(turn.opening + text, turn)

    return Search(plan.config, plan.prompt, answer_of, tree=tree, merge=kind.merge)


def job_result(
    job: Job,
    finished: FinishedSearch,
    *,
    job_id: str | None = None,
    state: JobState = JobState.SUCCEEDED,
) -> JobResult:
    """The caller's result of a search that has ended: ranked answers and totals."""
    kind, search, tree = kind_of(job), finished.search, finished.search.tree
    config, turn = finished.plan.config, finished.plan.config.turn
    answers = []
    for i, ranked in enumerate(search.ranked()[: job.options.answers], start=1):
        text = turn.opening + tree.text(tree.rollouts[ranked.best_rollout_id].leaf_id)
        extracted = kind.answer(text, turn)
        if extracted is None:
            raise SearchError(f"rollout {ranked.best_rollout_id} was ranked without an answer")
        answers.append(
            Answer(
                rank=i,
                text=extracted.display,
                normalised=ranked.key,
                confidence=ranked.confidence,
                votes=ranked.votes,
                share=ranked.share,
                output=kind.output(text, turn) or extracted.display,
                thought=kind.thought(text, turn),
                rollout_ids=ranked.rollout_ids,
            )
        )
    return JobResult(
        job_id=job_id,
        metadata=job.metadata or None,
        subject=job.subject,
        kind=job.kind,
        state=state,
        answers=tuple(answers),
        strategy=config.strategy,
        stop_reason=search.stop_reason,
        vote=config.choice,
        sharpness=config.sharpness,
        spread=config.spread,
        reference=config.reference,
        reward=config.reward,
        verifier=config.verifier,
        rollouts=len(tree.rollouts),
        shortfalls=Shortfalls.of(tree.rollouts, lambda i: tree.nodes[i].action),
        max_new_tokens=config.max_new_tokens,
        profile=config.profile or None,
        nodes=len(tree.nodes) - 1,
        generated_tokens=search.tokens,
        prompt_tokens=sum(r.prompt_tokens for r in tree.rollouts),
        cached_tokens=sum(r.cached_tokens for r in tree.rollouts),
        seconds=finished.seconds,
        model=finished.plan.model,
        revision=finished.plan.revision,
        expected=job.expected,
        correct=_correct(job, answers),
    )


def _correct(job: Job, answers: Sequence[Answer]) -> bool | None:
    if job.expected is None:
        return None
    try:
        return bool(answers) and kind_of(job).equal(answers[0].output, job.expected)
    except Exception:
        log.exception("the answer can't be compared with the expected one")
        return None


def solve(
    job: Job | str, *, runtime: Runtime | None = None, **options: Unpack[SearchOptionsDict]
) -> JobResult:
    """Search one job and return its ranked answers.

    `job` is a job, or a question for a ReasoningJob; `options` are the fields of
    SearchOptions (strategy="step", rollouts=16, seed=0, ...) for a question given as text.
    Without `runtime` the one that the settings name is opened for this call; to use one for
    many calls, open it with `open_runtime()`, and close it at the end.

    Raises InvalidJob for bad input, InvalidProfile and NotOffered for a profile, a reward model or
    a verifier that is not set up here, ModelRefused, PromptTooLong or RuntimeUnavailable from the
    runtime.
    """
    if isinstance(job, str):
        job = ReasoningJob(question=job, options=SearchOptions(**options))
    elif not isinstance(job, Job):
        raise InvalidJob("job", f"must be a job, or a question as text, not {shown(job)}")
    elif options:
        raise TypeError("options are for a question given as text; a job has its own")
    if isinstance(runtime, str):
        raise TypeError(f"runtime must be what open_runtime returns, not {shown(runtime)}")
    job = checked(job)
    return job_result(job, search_job(job, runtime=runtime))


def search_job(
    job: Job,
    *,
    runtime: Runtime | None = None,
    on_round: Callable[[Search], None] | None = None,
) -> FinishedSearch:
    """Search one job and return the finished search with its tree (see `solve`)."""
    if runtime is not None:
        return run_search(job, make_plan(job, runtime), runtime, Journal(), on_round=on_round)
    with closing(open_runtime(settings_module.load())) as opened:
        return search_job(job, runtime=opened, on_round=on_round)
