"""Profiles: those that ship, which one is taken, what goes before what, and what is refused."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from marco_search import profiles
from marco_search import settings as settings_module
from marco_search.cli import job_input
from marco_search.cli.main import cli
from marco_search.engine import SearchPlan, job_result, make_plan, search_job
from marco_search.errors import InvalidDataSet, InvalidJob, InvalidProfile, InvalidSettings
from marco_search.jobs import SearchOptions
from marco_search.kinds import ReasoningJob
from marco_search.profiles import NEUTRAL, Profile
from marco_search.search.branches import (
    MARCO_O1,
    Branch,
    BranchRequest,
    Expansion,
    Finish,
    Segment,
    Token,
)
from marco_search.search.config import STRATEGIES, configure
from tests.toy import ToyRuntime

SHIPPED = sorted(profiles.files())
PHRASE = profiles.load(NEUTRAL).reflection_texts


def question(text: str = "1+1?", **options: Any) -> ReasoningJob:
    return ReasoningJob(question=text, options=SearchOptions(**options))


def plan(model: str = "toy-marco-o1", text: str = "1+1?", **options: Any) -> SearchPlan:
    return make_plan(question(text, **options), ToyRuntime(model=model))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A MARCO_HOME of its own, with a folder for profiles."""
    (tmp_path / "profiles").mkdir()
    set_variable(monkeypatch, "MARCO_HOME", str(tmp_path))
    return tmp_path


def set_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    settings_module.load.cache_clear()


def write(home: Path, name: str, text: str) -> Path:
    file = home / "profiles" / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    return file


# -- which there are, and which is taken ---------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_each_is_valid_searches_and_is_the_same_again_when_written_out(name: str) -> None:
    found = profiles.load(name)
    assert found.name == name
    assert found.measured_on
    again = profiles.parse(profiles.dumps(found), "again")
    assert (again, again.label) == (found, found.label)
    for strategy in STRATEGIES:
        made = plan(profile=name, strategy=strategy)
        assert made.config.profile == found.label
        assert SearchPlan.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("AIDC-AI/Marco-o1", "marco-o1"),
        ("/models/Marco-o1-Q4_K_M.gguf", "marco-o1"),
        ("Qwen/Qwen2-7B-Instruct", "qwen2"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("Qwen/Qwen3-4B-Thinking-2507", "qwen3"),
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3-no-thinking"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        ("pocket", "pocket"),
        ("google/gemma-3-270m-it", NEUTRAL),
    ],
)
def test_the_model_s_name_chooses(model: str, name: str) -> None:
    assert profiles.chosen(model).name == name


def test_one_of_your_own_goes_first_and_travels_by_name_or_path(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'name = "mine"\nmodels = ["*qwen3*"]\ntemperature = 0.3\n[search]\nsharpness = 4.0\n'
    file = write(home, "mine", text)
    assert profiles.chosen("Qwen/Qwen3-8B", home / "profiles").name == "mine"
    named = plan(profile="mine").config
    assert (named.temperature, named.sharpness) == (0.3, 4.0)
    carried = job_input.given_options({"profile": str(file)})
    assert plan("elsewhere", **carried).config.profile == named.profile
    set_variable(monkeypatch, "MARCO_PROFILE", str(file))
    assert plan("Qwen/Qwen2-7B").config.profile == named.profile


@pytest.mark.parametrize("name", ["pocket", "marco-o1"])
def test_marco_o1_s_format_adds_nothing_to_the_strategies(name: str) -> None:
    for strategy in STRATEGIES:
        made = plan(profile=name, strategy=strategy)
        config = replace(made.config, profile="")
        assert config == configure(strategy, answer_width=1)
        assert made.prompt == "user: 1+1?\n<Thought>\n"


# -- what goes before what -----------------------------------------------------------------


def test_job_command_line_setting_profile_strategy(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("top_p", "exploration", "branching", "width", "temperature")
    values = {name: i for i, name in enumerate(fields)}
    write(home, "mine", 'name = "mine"\ntop_p = 0.1\ntemperature = 0.1\n'
          "[search]\nexploration = 0.1\nbranching = 11\n[search.step]\nwidth = 11\n")  # fmt: skip
    setting = {"top_p": 0.2, "exploration": 0.2, "branching": 12}
    set_variable(monkeypatch, "MARCO_OVERRIDES", json.dumps(setting))
    shell = job_input.given_options({"assignments": (("top_p", "0.3"), ("exploration", "0.3"))})
    line = {
        "kind": "reasoning",
        "question": "1+1?",
        "options": {"strategy": "step", "overrides": {"top_p": 0.4}},
    }
    mine = shell | {"profile": "mine"}
    ((_, job),) = job_input.checked([json.dumps(line).encode()], "jobs", mine)
    found = make_plan(job, ToyRuntime()).config
    assert [getattr(found, n) for n in values] == [0.4, 0.3, 12, 11, 0.1]
    assert (found.root_width, found.selection) == (4, "uct")


def test_a_job_s_own_option_goes_before_the_command_line_s_assignment() -> None:
    line = b'{"kind": "reasoning", "question": "1+1?", "options": {"temperature": 0.5}}'
    shell = job_input.given_options(
        {"assignments": (("temperature", "0.9"), ("max_new_tokens", "7"))}
    )
    ((_, job),) = job_input.checked([line], "jobs", shell)
    config = make_plan(job, ToyRuntime()).config
    assert (config.temperature, config.max_new_tokens) == (0.5, 7)


def test_a_profile_says_what_auto_is() -> None:
    table = {"sharpness": 3.0, "vote": {"sharpness": 5.0}, "auto": {"exploration": 7.0}}
    made = plan(overrides={"strategy": "vote", "search": table}).config
    assert (made.strategy, made.sharpness, made.exploration) == ("vote", 5.0, 7.0)
    assert plan(strategy="step", overrides={"strategy": "vote"}).config.strategy == "step"


def test_a_greedy_strategy_stays_greedy_unless_the_job_says_otherwise() -> None:
    assert plan(profile="qwen2", strategy="cot").config.temperature == 0
    assert plan(profile="qwen2", strategy="cot", temperature=0.4).config.temperature == 0.4
    insists = plan(profile="qwen2", strategy="cot", overrides={"temperature": 0.4})
    assert insists.config.temperature == 0.4


def test_the_label_changes_with_what_changes_a_search_and_with_nothing_else() -> None:
    base = profiles.load("qwen2")
    assert profiles.override(base, {"measured_on": "x"}).label == base.label
    assert profiles.override(base, {"sharpness": 3.0}).label != base.label
    assert profiles.override(base, {"system_prompt": "x"}).label != base.label


# -- the prompt ----------------------------------------------------------------------------


def test_system_prompt_and_examples_stand_before_the_question() -> None:
    examples = [{"user": "2+2?", "assistant": "4"}]
    overrides = {"system_prompt": "Be brief.", "examples": examples}
    prompt = plan("x", overrides=overrides).prompt
    assert prompt == "system: Be brief.\nuser: 2+2?\nassistant: 4\nuser: 1+1?\n"
    own = question(overrides=overrides).model_copy(update={"system_prompt": "Mine."})
    assert make_plan(own, ToyRuntime(model="x")).prompt.startswith("system: Mine.\n")


def test_without_a_template_of_the_model_the_profile_s_is_used_or_it_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Guessing(ToyRuntime):
        @property
        def info(self) -> Any:
            return replace(super().info, own_template=False)

    llama = make_plan(question(profile="llama-3"), Guessing()).prompt
    assert llama == (
        "<|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            chatml = make_plan(question(), Guessing(model="some-base-model")).prompt
    assert chatml == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert len(caplog.records) == 1
    assert "MARCO_MODEL" in caplog.text


def test_a_template_of_the_profile_s_own_gets_its_options_and_comes_in_no_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = "{{ messages[0].content }}{% if not think %}<think></think>{% endif %}"
    overrides = {"chat_template": template, "template_options": {"think": False}}
    with pytest.raises(InvalidJob, match="a job can't carry a template"):
        question(overrides=overrides)
    set_variable(monkeypatch, "MARCO_OVERRIDES", json.dumps(overrides))
    assert plan("x").prompt == "1+1?<think></think>"


# -- thoughts without tags -----------------------------------------------------------------

LINES = "Tom has 3.\n3 + 5 = 8.\nThe answer is 8."


class Plain(ToyRuntime):
    """Writes the same lines every time, without any tags."""

    def __init__(self, text: str = LINES) -> None:
        super().__init__(model="plain")
        self.text = text

    def branch(self, expansions: Sequence[Expansion]) -> list[Branch]:
        return [self._branch(e, r) for e in expansions for r in e.branches]

    def _branch(self, expansion: Expansion, request: BranchRequest) -> Branch:
        phrase = Segment(expansion.turn.reflection + "\n")
        pieces = re.findall(r"\n| ?[^\n ]+", self.text)
        tokens = tuple(Token(i, p, -0.1, ((i, -0.1),)) for i, p in enumerate(pieces))
        tokens = tokens[: request.max_new_tokens]
        own = Segment("".join(t.text for t in tokens), tokens)
        done = own.text == self.text
        return Branch(
            branch_id=request.branch_id,
            segments=(phrase, own) if request.reflect == "first" else (own,),
            finish=Finish.STOP if done else Finish.LENGTH,
        )


@pytest.mark.parametrize("text", [LINES, "Tom has 3.\n3 + 5 = 8.\nSo there are 8 of them."])
@pytest.mark.parametrize(
    ("asked", "phrase"), [("How many apples?", PHRASE["en"]), ("有几个苹果？", PHRASE["zh"])]
)
def test_a_thought_without_tags_has_steps_and_reflects_where_the_answer_begins(
    text: str, asked: str, phrase: str
) -> None:
    narrow = {"root_width": 1, "width": 1, "parallel": 1}
    job = question(asked, strategy="step", rollouts=3, reflection="branch", overrides=narrow)
    tree = search_job(job, runtime=Plain(text)).search.tree
    assert [n.action for n in tree.nodes[1:4]] == ["step", "step", "answer"]
    assert tree.nodes[3].text == text.splitlines()[-1]
    redo = next(n for n in tree.nodes if n.action == "reflection")
    assert (redo.text, redo.parent_id) == (f"{phrase}\n", 2)
    assert {r.answer for r in tree.rollouts} == {"8"}


def test_steps_may_be_sentences() -> None:
    text = "1. Tom has 3.5 m. He buys 5 more. The answer is 8.5 m."
    job = question(strategy="step", rollouts=1, overrides={"steps": "sentence"})
    nodes = search_job(job, runtime=Plain(text)).search.tree.nodes[1:]
    assert [n.text.strip() for n in nodes] == ["1. Tom has 3.5 m.", "He buys 5 more.",
                                               "The answer is 8.5 m."]  # fmt: skip
    assert [n.action for n in nodes] == ["sentence", "sentence", "answer"]


def test_think_tags_are_read() -> None:
    text = "<think>\nIs it 7?\nNo.\n</think>\n\nThe answer is 8."
    job = question(profile="qwen3", strategy="cot")
    finished = search_job(job, runtime=Plain(text))
    answer = job_result(job, finished).answer
    assert answer is not None
    assert (answer.text, answer.output) == ("8", "The answer is 8.")
    assert answer.thought == "Is it 7?\nNo."


# -- what a model does not keep to ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text", "said"),
    [
        ({"max_new_tokens": 4}, LINES,
         "all 3 rollouts were cut off at 4 tokens: raise --max-new-tokens"),
        ({"max_tokens": 24}, LINES * 9, "the only rollout was cut off at 24 tokens: raise --max-"),
        ({}, "???", "all 3 rollouts ended without an answer that can be read: another profile"),
        ({"profile": "marco-o1"}, LINES,
         "all 3 rollouts never ended the thought as the profile expects: another profile"),
    ],
)  # fmt: skip
def test_no_answer_or_an_odd_one_says_why(options: Any, text: str, said: str) -> None:
    job = question(strategy="vote", rollouts=3, early_stop=False, **options)
    result = job_result(job, search_job(job, runtime=Plain(text)))
    assert said in str(result.shortfall)
    assert (result.answer is None) == ("profile" not in options)


def test_rollouts_that_end_well_are_not_mentioned() -> None:
    job = question(strategy="vote", rollouts=3)
    assert job_result(job, search_job(job, runtime=ToyRuntime())).shortfall is None


# -- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "not valid TOML"),
        ('name = "a b"', "name: "),
        ("temprature = 1.0", "temprature: unknown field; did you mean 'temperature'?"),
        ("top_p = 1.5", "top_p: must be at most 1, not 1.5"),
        ("[search]\nsharpnes = 1", "search.sharpnes: unknown field; did you mean 'sharpness'?"),
        ("[search]\nreference = nan", "search.reference: must be a finite number, not nan"),
        ("[search.tree]\nspread = inf", "search.spread: must be a finite number, not inf"),
        ('[search]\nsharpness = "much"', "search.sharpness: must be a number, not 'much'"),
        ("[search.tree]\nsharpness = -1.0", "search.sharpness: must be at least 0, not -1.0"),
        ('[search]\nselection = "best"', "search.selection: unknown value 'best'; use one of: uct"),
        ('[search]\nreward = "luck"', "search: unknown reward 'luck'"),
        ('[reflection_texts]\nzh = "x"', "reflection_texts: needs a text for en"),
        ('end_of_thought = "</t>"\nstops = ["</t>"]', "can't also be in `stops`"),
        ('output = "<o>"', "output and end_of_output: give both or none"),
        ('examples = [{user = "x"}]', "examples.0.assistant: missing"),
    ],
)
def test_a_file_that_can_not_be_used_says_which_and_why(home: Path, text: str, said: str) -> None:
    file = write(home, "mine", text)
    with pytest.raises(InvalidProfile) as raised:
        profiles.load("mine", home / "profiles")
    assert str(raised.value).startswith(f"{file}: ")
    assert said in str(raised.value)


def test_a_job_is_refused_when_it_is_made() -> None:
    with pytest.raises(InvalidJob, match=r"overrides\.x: unknown field; see docs"):
        question(overrides={"x": 1})
    with pytest.raises(InvalidJob, match="profile"):
        question(profile="../../etc/passwd")
    with pytest.raises(InvalidProfile, match=r"no profile 'qwen33'.*did you mean 'qwen3'"):
        plan(profile="qwen33")


def test_what_a_setting_can_not_override_names_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_variable(monkeypatch, "MARCO_OVERRIDES", '{"top_p": 2}')
    with pytest.raises(InvalidSettings, match="MARCO_OVERRIDES: top_p: must be at most 1"):
        plan()
    set_variable(monkeypatch, "MARCO_OVERRIDES", "{")
    with pytest.raises(InvalidSettings, match=r"MARCO_OVERRIDES: .*not JSON, such as"):
        settings_module.load()


# -- the command line ----------------------------------------------------------------------


def marco(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def test_profiles_are_listed_and_shown_as_files(home: Path) -> None:
    listed = marco("profile", "list", "--model", "Qwen/Qwen3-8B").output
    assert "* qwen3  *qwen3*" in listed.splitlines()
    shown = marco("profile", "show", "smollm2").output
    write(home, "mine", shown.replace('"smollm2"', '"mine"', 1))
    assert json.loads(marco("profile", "show", "mine", "--json").output)["steps"] == "sentence"
    (home / "profiles").mkdir(exist_ok=True)
    (home / "profiles" / "mine.toml").write_text(marco("profile", "show", "qwen2").output)
    lines = marco("profile", "list", "--model", "qwen2-7b").output.splitlines()
    assert [line.split()[:2] for line in lines if "*qwen2*" in line] == [
        ["*", "mine"],
        ["qwen2", "*qwen2*"],
    ]


def test_examples_come_from_a_set_of_any_form(tmp_path: Path) -> None:
    file = tmp_path / "examples.tsv"
    file.write_text("2+2?\t4\n", encoding="utf-8")
    given = job_input.given_options({"examples": str(file)})
    assert given["overrides"] == {"examples": [{"user": "2+2?", "assistant": "4"}]}
    turn = tmp_path / "turns.jsonl"  # the whole turn is the example, not the label beside it
    turn.write_text('{"question": "2+2?", "answer": "2+2=4. So 4.", "answer_number": 4}\n')
    given = job_input.given_options({"examples": str(turn)})
    assert given["overrides"]["examples"][0]["assistant"] == "2+2=4. So 4."
    with pytest.raises(InvalidDataSet, match="no such file"):
        job_input.given_options({"examples": str(tmp_path / "absent.jsonl")})


def test_examples_and_assignments_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text('{"question": "2+2?", "answer": 4}\n', encoding="utf-8")
    given = job_input.given_options(
        {
            "examples": str(file),
            "system_prompt": "Hi",
            "assignments": (("stops", '["Q:"]'), ("steps", "line")),
        }
    )
    assert given["overrides"] == {
        "stops": ["Q:"],
        "steps": "line",
        "system_prompt": "Hi",
        "examples": [{"user": "2+2?", "assistant": "4"}],
    }
    assert "write FIELD=VALUE" in marco("solve", "1+1?", "--set", "top_p").output


def test_the_defaults_are_the_neutral_profile() -> None:
    fields = profiles.load(NEUTRAL).model_dump(exclude={"measured_on"})
    assert fields == Profile().model_dump(exclude={"measured_on"})
    assert profiles.load("pocket").turn("zh") == MARCO_O1
