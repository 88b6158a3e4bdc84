"""What a caller may submit, what is refused and in which words."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import pydoc
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from marco_search.errors import (
    InvalidBatch,
    InvalidJob,
    InvalidProfile,
    JobNotFound,
    MarcoError,
    ModelNotFound,
    QueueFull,
    WorkerLost,
)
from marco_search.jobs import (
    MAX_TEXT_CHARS,
    Answer,
    Job,
    JobResult,
    SearchOptions,
    payload_hash,
)
from marco_search.kinds import (
    KINDS,
    OpenEndedJob,
    ReasoningJob,
    TranslationJob,
    checked,
    completions,
    job_from_json_line,
    parse_completion,
    parse_job,
)
from marco_search.kinds.translation import LANGUAGES
from marco_search.search.config import STRATEGIES

QUESTION = {"kind": "reasoning", "question": "2+2?"}


def nested(depth: int) -> list[Any]:
    """A list within a list, and so on."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def refusal(data: Any) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        parse_job(data)
    return caught.value


def test_defaults() -> None:
    job = parse_job(QUESTION)
    assert isinstance(job, ReasoningJob)
    assert job == ReasoningJob(question="2+2?")
    assert job.options == SearchOptions()
    assert (job.options.strategy, job.options.rollouts, job.options.answers) == ("auto", 16, 3)
    assert (job.priority, job.metadata, job.system_prompt) == ("normal", {}, None)


def test_every_strategy_of_the_search_can_be_asked_for() -> None:
    for strategy in STRATEGIES:
        assert (
            parse_job(QUESTION | {"options": {"strategy": strategy}}).options.strategy == strategy
        )


@pytest.mark.parametrize(
    "job",
    [
        ReasoningJob(question="a", options=SearchOptions(rollouts=3, max_seconds=1.5)),
        TranslationJob(text="踩屎感", metadata={"a": 1, "b": 1.0, "c": True, "d": "x"}),
        OpenEndedJob(prompt="a", system_prompt="marco-o1", priority="high", expected="b"),
    ],
)
def test_json_round_trip(job: Any) -> None:
    again = parse_job(json.loads(job.model_dump_json()))
    assert again == job
    assert payload_hash(again) == payload_hash(job)
    assert job_from_json_line(job.model_dump_json().encode(), 1) == job


def test_jobs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ReasoningJob(question="a").question = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"question": ""}, "question", "empty or blank"),
        ({"question": " \n\u3000\u200b"}, "question", "empty or blank"),
        ({"question": "x" * (MAX_TEXT_CHARS + 1)}, "question", "too long: 65,537 characters"),
        ({"question": "a\x00b"}, "question", "NUL character at position 1"),
        ({"question": "ab\ud800"}, "question", "lone surrogate at position 2"),
        ({"question": 7}, "question", "must be text, not 7"),
        ({"question": None}, "question", "must be text, not None"),
        ({"options": {"strategy": "stepp"}}, "options.strategy", "did you mean 'step'"),
        ({"options": {"strategy": "mcts"}}, "options.strategy", "cot, vote, best-of-n, step"),
        ({"options": {"rollouts": 0}}, "options.rollouts", "at least 1, not 0"),
        ({"options": {"rollouts": 5000}}, "options.rollouts", "at most 4,096, not 5000"),
        ({"options": {"rollouts": "16"}}, "options.rollouts", "a whole number, not '16'"),
        ({"options": {"rollouts": True}}, "options.rollouts", "a whole number, not True"),
        ({"options": {"rollouts": 1.5}}, "options.rollouts", "a whole number, not 1.5"),
        ({"options": {"max_tokens": -1}}, "options.max_tokens", "at least 1"),
        ({"options": {"max_seconds": 0}}, "options.max_seconds", "more than 0, not 0"),
        ({"options": {"max_seconds": float("nan")}}, "options.max_seconds", "finite"),
        ({"options": {"max_seconds": float("inf")}}, "options.max_seconds", "finite"),
        ({"options": {"max_new_tokens": 0}}, "options.max_new_tokens", "at least 1"),
        ({"options": {"temperature": -0.1}}, "options.temperature", "at least 0"),
        ({"options": {"seed": 2**31}}, "options.seed", "less than 2,147,483,648"),
        ({"options": {"seed": -1}}, "options.seed", "at least 0"),
        ({"options": {"answers": 0}}, "options.answers", "at least 1"),
        ({"options": {"reflection": "maybe"}}, "options.reflection", "never, branch, always"),
        ({"options": {"selection": "uctt"}}, "options.selection", "did you mean 'uct'"),
        ({"options": {"reward": "leaf"}}, "options.reward", "path, rollout"),
        (
            {"options": {"profile": "../mine"}},
            "options.profile",
            "must be at most 64 letters, digits",
        ),
        ({"options": {"early_stop": "yes"}}, "options.early_stop", "true or false"),
        ({"options": {"rollout": 3}}, "options.rollout", "did you mean 'rollouts'"),
        ({"options": {"rollouts": 10**5000}}, "options.rollouts", "at most 4,096"),
        ({"options": {"max_tokens": 2**63}}, "options.max_tokens", "less than"),
        (
            {"options": {"overrides": {"rollouts": 10**10}}},
            "options.overrides.rollouts",
            "at most 4,096",
        ),
        (
            {"options": {"overrides": {"search": {"tree": {"rollouts": 10**10}}}}},
            "options.overrides.search.rollouts",
            "at most 4,096",
        ),
        (
            {"options": {"overrides": {"branching": 10**9}}},
            "options.overrides.branching",
            "at most 4,096",
        ),
        (
            {"options": {"overrides": {"max_tokens": 10**30}}},
            "options.overrides.max_tokens",
            "less than",
        ),
        (
            {"options": {"overrides": {"max_seconds": -5.0}}},
            "options.overrides.max_seconds",
            "more than",
        ),
        ({"options": {"overrides": {"stops": [""]}}}, "options.overrides", "empty text"),
        ({"options": {"overrides": {"top_p": b"1"}}}, "options.overrides", "JSON can't express"),
        ({"options": {"overrides": {"top_p": nested(10**5)}}}, "options.overrides", "JSON can't"),
        (
            {"options": {"overrides": {"template_options": {"a": nested(98)}}}},
            "options.overrides",
            "100 within each other",
        ),
        (
            {"options": {"overrides": {"template_options": {"a": float("nan")}}}},
            "options.overrides",
            "JSON can't",
        ),
        ({"metadata": nested(10**5)}, "metadata", "not a value of type list"),
        ({"a\x00\u2028": 1}, r"a\x00\u2028", "unknown field"),
        ({"a\ud800": 1}, "job", "lone surrogate"),
        ({"options": {"\n": 1}}, r"options.\n", "unknown field"),
        ({"options": 3}, "options", "an object of names and values, not 3"),
        ({"colour": "red"}, "colour", "unknown field"),
        ({"priority": "urgent"}, "priority", "low, normal, high"),
        ({"tenant": ""}, "tenant", "empty"),
        ({"idempotency_key": "k" * 201}, "idempotency_key", "at most 200"),
        ({"system_prompt": "marco-01"}, "system_prompt", "did you mean 'marco-o1'"),
        ({"system_prompt": " "}, "system_prompt", "empty or blank"),
        ({"expected": ""}, "expected", "empty or blank"),
        ({"metadata": []}, "metadata", "an object"),
        ({"metadata": {"a": [1]}}, "metadata", "entry 'a': must be text, a number"),
        ({"metadata": {"a": None}}, "metadata", "entry 'a'"),
        ({"metadata": {"a": "\x00"}}, "metadata", "NUL"),
        ({"metadata": {"\ud800": 1}}, "metadata", "surrogate"),
        ({"metadata": {"a": 2**63}}, "metadata", "64 bits"),
        ({"metadata": {"a": float("inf")}}, "metadata", "finite"),
        ({"metadata": {"a": 1e30}}, "metadata", "as text"),
        ({"metadata": {str(i): i for i in range(33)}}, "metadata", "at most 32"),
    ],
)
def test_bad_input_names_field_and_reason(change: dict[str, Any], field: str, words: str) -> None:
    error = refusal(QUESTION | change)
    assert error.field == field
    assert words in error.reason
    assert len(str(error)) < 500


def test_a_copy_with_changes_is_checked() -> None:
    job = parse_job(QUESTION | {"options": {"rollouts": 4}})
    assert checked(job) == job
    assert payload_hash(checked(job)) == payload_hash(job)
    with_text = job.model_copy(update={"options": {"rollouts": 8}})
    assert checked(with_text).options.rollouts == 8
    wrong: dict[str, Any]
    for wrong in ({"question": "\x00"}, {"options": None}, {"kind": "new"}, {"deadline": "x"}):
        with pytest.raises(InvalidJob, match=next(iter(wrong))):
            checked(job.model_copy(update=wrong))
    with pytest.raises(InvalidJob, match="question: missing"):
        checked(Job(kind="reasoning"))


@pytest.mark.parametrize(
    "error",
    [
        InvalidJob("question", "empty", 3),
        InvalidBatch("a.jsonl", [InvalidJob("line 1", "empty")]),
        InvalidProfile("unknown", "stops"),
        QueueFull("full", 3.0),
        WorkerLost(["a", "b"]),
        JobNotFound("no job"),
    ],
)
def test_errors_pass_between_processes(error: MarcoError) -> None:
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301  # our own
        assert type(same) is type(error)
        assert str(same) == str(error)
        # An error within an error is equal to itself only.
        assert vars(same).keys() == vars(error).keys()
        assert repr(vars(same)) == repr(vars(error))


def test_bad_input_is_refused_by_the_constructors_too() -> None:
    with pytest.raises(InvalidJob, match="question: empty"):
        ReasoningJob(question="")
    with pytest.raises(InvalidJob, match=r"^rollouts: must be at least 1"):
        SearchOptions(rollouts=0)
    with pytest.raises(InvalidJob, match="prompt: missing"):
        OpenEndedJob()  # type: ignore[call-arg]


def test_missing_field_points_to_the_one_that_was_misspelt() -> None:
    error = refusal({"kind": "reasoning", "qestion": "a"})
    assert error.field == "question"
    assert "did you mean 'qestion'" in error.reason


def test_all_wrong_fields_are_named() -> None:
    error = refusal(QUESTION | {"priority": "x", "tenant": 3, "z": 1})
    assert error.field == "tenant"
    assert "also wrong: priority, z" in error.reason


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"question": "a"}, "missing; use one of: reasoning, translation, open_ended"),
        ({"kind": "reasonning"}, "did you mean 'reasoning'"),
        ({"kind": ["reasoning"]}, "unknown kind"),
        ({"kind": None}, "unknown kind"),
    ],
)
def test_unknown_kind(data: dict[str, Any], words: str) -> None:
    error = refusal(data)
    assert error.field == "kind"
    assert words in error.reason


def test_a_job_must_be_an_object() -> None:
    assert refusal([1]).field == "job"


def test_supplementary_characters_pass() -> None:
    assert ReasoningJob(question="😀 𠀀").question == "😀 𠀀"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("zh", "zh"), ("ZH-cn", "zh"), ("zh_TW", "zh-hant"), ("Chinese", "zh"), ("中文", "zh"),
        ("zh-Hant-HK", "zh-hant"), (" german ", "de"), ("pt-BR", "pt"),
        ("Traditional Chinese", "zh-hant"),
    ],
)  # fmt: skip
def test_languages_by_code_or_name(name: str, code: str) -> None:
    assert TranslationJob(text="a", source=name, target="en").source == code


def test_every_language_can_be_named_both_ways() -> None:
    for code, name in LANGUAGES.items():
        target = "en" if code != "en" else "fr"
        assert TranslationJob(text="a", source=code, target=target).source == code
        assert TranslationJob(text="a", source=name, target=target).source == code


@pytest.mark.parametrize("name", ["xx", "Klingon", "", "e n"])
def test_unknown_language(name: str) -> None:
    error = refusal({"kind": "translation", "text": "a", "source": name})
    assert error.field == "source"
    assert "unknown language" in error.reason


def test_a_translation_needs_two_languages() -> None:
    for languages in ({"source": "English"}, {"source": "de", "target": "German"}):
        error = refusal({"kind": "translation", "text": "a"} | languages)
        assert (error.field, error.reason[:17]) == ("target", "the same language")


# -- JSON lines -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        (b'{"kind":"reasoning","question":"\xff"}', "line 3", "byte 0xff at offset 32"),
        (b'{"kind":"reasoning"', "line 3", "not valid JSON at column"),
        ("", "line 3", "not valid JSON"),
        ("[1]", "line 3", "must be a JSON object"),
        ('"x"', "line 3", "must be a JSON object"),
        ("[" * 100_000, "line 3", "too large"),
        ('{"kind": ' + "9" * 5000 + "}", "line 3", "too large"),
        ('{"kind":"reasoning","kind":"x"}', "line 3, kind", "given twice"),
        ('{"kind":"reasoning","options":{"max_seconds":NaN}}', "line 3, job", "NaN"),
        ('{"kind":"reasoning","question":"\\ud800"}', "line 3, question", "surrogate"),
        ('{"kind":"reasoning","question":"\\u0000"}', "line 3, question", "NUL"),
        ('{"kind":"x"}', "line 3, kind", "unknown kind"),
        (
            '{"kind":"reasoning","question":"a","options":{"rollouts":0}}',
            "line 3, options.rollouts",
            "at least 1",
        ),
    ],
)
def test_bad_lines_name_line_field_and_reason(line: bytes | str, field: str, words: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        job_from_json_line(line, 3)
    assert caught.value.field == field
    assert words in caught.value.reason


def test_byte_order_mark_and_line_end_are_no_matter() -> None:
    for line in (b'\xef\xbb\xbf{"kind":"reasoning","question":"2+2?"}\r\n',
                 '\ufeff{"kind":"reasoning","question":"2+2?"}\n'):  # fmt: skip
        assert job_from_json_line(line, 1) == ReasoningJob(question="2+2?")


# -- payload hash -----------------------------------------------------------------------


def test_hash_is_stable_over_releases() -> None:
    # Stored in the database beside idempotency keys: a change here breaks resubmission.
    canonical = b'{"kind":"reasoning","options":{"seed":7},"question":"2+2?"}'
    job = ReasoningJob(question="2+2?", options=SearchOptions(seed=7))
    assert payload_hash(job) == hashlib.sha256(canonical).hexdigest()


def test_hash_does_not_see_how_a_payload_was_spelt() -> None:
    plain = ReasoningJob(question="a")
    spelt = ReasoningJob(
        question="a", options=SearchOptions(rollouts=16), priority="normal", metadata={}
    )
    named = ReasoningJob(question="a", tenant="t", idempotency_key="k")
    assert len({payload_hash(job) for job in (plain, spelt, named)}) == 1
    a = ReasoningJob(question="a", metadata={"x": 1, "y": 2})
    b = ReasoningJob(question="a", metadata={"y": 2, "x": 1})
    assert payload_hash(a) == payload_hash(b)
    german = [TranslationJob(text="a", source=s) for s in ("de", "German")]
    assert payload_hash(german[0]) == payload_hash(german[1])


def test_hash_tells_payloads_apart() -> None:
    jobs: list[Job] = [
        ReasoningJob(question="a"),
        ReasoningJob(question="b"),
        OpenEndedJob(prompt="a"),
        TranslationJob(text="a"),
        TranslationJob(text="a", style="plain"),
        ReasoningJob(question="a", options=SearchOptions(seed=1)),
        ReasoningJob(question="a", metadata={"x": 1}),
        ReasoningJob(question="a", system_prompt="marco-o1"),
        ReasoningJob(question="a", expected="1"),
        ReasoningJob(question="a", priority="low"),
    ]
    assert len({payload_hash(job) for job in jobs}) == len(jobs)


# -- results ----------------------------------------------------------------------------


def test_result_round_trip() -> None:
    answers = tuple(
        Answer(
            rank=i, text="18", normalised="18", confidence=0.5, votes=2, share=0.5, output="18 eggs"
        )
        for i in (1, 2)
    )
    result = JobResult(
        job_id="j", kind="reasoning", state="succeeded", answers=answers, strategy="step"
    )
    assert result.answer == answers[0]
    assert JobResult.model_validate_json(result.model_dump_json()) == result
    assert JobResult.model_validate(json.loads(result.model_dump_json())) == result
    late = result.model_copy(update={"state": "expired"})
    assert "GET /jobs/j/result has the answers" in completions.response(late)["error"]["message"]


def test_a_result_without_answers_has_no_answer() -> None:
    result = JobResult(kind="open_ended", state="dead", strategy="cot", error="x")
    assert result.answer is None


def test_kinds_have_models() -> None:
    assert set(KINDS) == {"reasoning", "translation", "open_ended"}


@pytest.mark.parametrize(
    ("terms", "field", "reason"),
    [
        ({"deadline": "tomorrow"}, "deadline", "is not a time"),
        ({"deadline": "2030-01-31T18:00:00"}, "deadline", "no time zone"),
        ({"expires_in_s": 0}, "expires_in_s", "more than 0"),
        ({"deadline": "2030-01-31T18:00:00Z", "expires_in_s": 5}, "expires_in_s", "either"),
    ],
)
def test_a_deadline_that_means_nothing_is_refused(
    terms: dict[str, object], field: str, reason: str
) -> None:
    with pytest.raises(InvalidJob, match=reason) as caught:
        parse_job({"kind": "reasoning", "question": "1 + 1?", **terms})
    assert caught.value.field == field


def test_a_deadline_is_the_same_moment_after_a_round_trip() -> None:
    given = {"kind": "reasoning", "question": "1 + 1?", "deadline": "2030-01-31T18:00:00+01:00"}
    job = parse_job(given)
    assert job.deadline is not None
    assert job.deadline.timestamp() == 1896109200
    assert parse_job(job.model_dump(mode="json")) == job


def test_a_huge_field_is_refused_at_once_and_briefly() -> None:
    line = b'{"kind": "reasoning", "question": "1 + 1?", "%s": 1}' % (b"x" * 2_000_000)
    for bad in (line, line.replace(b"}", b', "kind": "reasoning"}')):
        with pytest.raises(InvalidJob) as refused:
            job_from_json_line(bad, 1)
        assert len(str(refused.value)) < 1000
    with pytest.raises(InvalidJob) as refused:
        parse_job({"kind": "y" * 2_000_000})
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("offset", ["+15:59", "+16:00", "-23:59", "+23:59:59"])
def test_a_deadline_of_any_offset_can_be_stored(offset: str) -> None:
    moment = datetime.fromisoformat(f"2030-01-31T18:00:00{offset}")
    job = parse_job({"kind": "reasoning", "question": "?1", "deadline": moment.isoformat()})
    assert job.deadline == moment
    assert abs(job.deadline.utcoffset() or timedelta()) < timedelta(hours=16)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_deadline_that_no_clock_reaches_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob, match="deadline"):
        parse_job({"kind": "reasoning", "question": "?1", "deadline": text})


@pytest.mark.parametrize(
    "model", [SearchOptions, *(kind.model for kind in KINDS.values()), JobResult, Answer]
)
def test_help_and_schema_say_what_each_field_means(model: type[BaseModel]) -> None:
    shown = pydoc.plain(pydoc.render_doc(model))
    for name, schema in model.model_json_schema()["properties"].items():
        assert schema["description"], name
        assert f"{name}: {schema['description']}" in shown


@pytest.mark.parametrize(("given", "kept"), [(391, "391"), (2.5, "2.5"), ("1/3", "1/3")])
def test_a_label_may_be_a_number(given: object, kept: str) -> None:
    assert ReasoningJob(question="q", expected=given).expected == kept  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [True, float("nan"), [1], {}])
def test_a_label_is_text_or_a_number(given: object) -> None:
    with pytest.raises(InvalidJob, match="expected: "):
        ReasoningJob(question="q", expected=given)  # type: ignore[arg-type]


def test_a_chat_completion_is_a_job() -> None:
    turns = [("system", ""), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?")]
    body: dict[str, Any] = {
        "model": "step:pocket", "n": 4, "max_completion_tokens": 900, "max_tokens": 90, "tools": [],
        "messages": [{"role": role, "content": text} for role, text in turns], "top_p": 0.5,
        "marco": {"options": {"rollouts": 3, "overrides": {"top_p": 0.9}}}, "user": "u",
    }  # fmt: skip
    job = parse_completion(body, idempotency_key="k")
    examples = [{"user": "1+1?", "assistant": "2"}]
    assert job == ReasoningJob(
        question="2+2?", endpoint="/v1/chat/completions", idempotency_key="k",
        options=SearchOptions(
            strategy="step", profile="pocket", answers=4, max_tokens=900, max_new_tokens=90,
            rollouts=3, overrides={"top_p": 0.9, "examples": examples},
        ),
    )  # fmt: skip
    other = body | {"model": "gpt-4o"}
    with pytest.raises(ModelNotFound, match="marco-search, auto"):
        parse_completion(other)
    line = json.dumps({"custom_id": "a", "url": "/v1/chat/completions", "body": other})
    assert job_from_json_line(line, 1).options.strategy == "auto"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"n": 0}, "n"), ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"), ({"seed": "x"}, "seed"), ({"top_p": 3}, "top_p"),
        ({"stream": "false"}, "stream"),
        ({"top_p": 3, "marco": {"options": {"overrides": {"spread": 1}}}}, "top_p"),
        (
            {"marco": {"options": {"overrides": {"top_p": 3}}}, "top_p": 1},
            "marco.options.overrides.top_p",
        ),
        ({"marco": {"options": {"overrides": {"x": 3}}}}, "marco.options.overrides.x"),
        ({"messages": [{"role": "user", "content": "\0"}]}, "messages"),
        ({"metadata": {"a": []}}, "metadata"), ({"marco": {"tenant": " "}}, "marco.tenant"),
        ({"marco": {"options": {"answers": 0}}, "n": 1}, "marco.options.answers"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_chat_completion_has_the_name_that_its_caller_wrote(
    wrong: dict[str, Any], field: str
) -> None:
    body = {"messages": [{"role": "user", "content": "1+1?"}]} | wrong
    with pytest.raises(InvalidJob) as refused:
        parse_completion(body)
    assert refused.value.field == field
    assert not refused.value.reason.startswith(field.rpartition(".")[2])  # its name once
    with pytest.raises(InvalidJob) as refused:
        job_from_json_line(json.dumps({"custom_id": "a", "body": body}), 3)
    assert refused.value.field == f"line 3, body.{field}"
