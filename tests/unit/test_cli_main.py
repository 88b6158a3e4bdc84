"""The command line as scripts meet it: exit codes, messages, JSON, and nothing heavy loaded."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import pytest

from marco_search import errors
from marco_search import settings as settings_module
from marco_search.cli import main as main_module
from marco_search.cli.main import COMMANDS, cli, main
from marco_search.errors import MarcoError
from marco_search.jobs import SearchOptions
from marco_search.kinds import KINDS
from marco_search.search.config import STRATEGIES, ReflectionPolicy
from tests.toy import ToyRuntime

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nothing_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A home without services; settings read again."""
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MARCO_HOME", str(tmp_path / "home"))
    settings_module.load.cache_clear()
    yield
    settings_module.load.cache_clear()


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A command `boom` that raises a given error."""

    def make(error: BaseException) -> None:
        @click.command()
        @click.option("--json", "as_json", is_flag=True)
        def boom(as_json: bool) -> None:
            raise error

        monkeypatch.setattr(cli, "get_command", lambda ctx, name: boom)

    return make


def test_show_says_which_options_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "abcd", "-o", "x.html"]) == 2
    assert "--output needs --format" in capsys.readouterr().err
    assert main(["show", "abcd", "--format", "svg", "--json"]) == 2
    assert main(["show", "abcd", "--format", "gif"]) == 2
    assert main(["show", "abcd", "--format", "html", "--full"]) == 2
    capsys.readouterr()
    assert main(["dataset", "from-traces", "out", "--pairs", "--path", "any"]) == 2
    assert "--path goes without --pairs" in capsys.readouterr().err
    assert main(["dataset", "from-traces", "out", "--pairs-per-job", "2"]) == 2
    assert "--pairs-per-job goes with --pairs" in capsys.readouterr().err


def error_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    data = json.loads(line)
    assert set(data) == {"error"}
    assert set(data["error"]) == {"type", "message", "exit_code"}
    return data["error"]  # type: ignore[no-any-return]


def test_every_listed_command_exists_says_what_it_does_and_takes_json() -> None:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help, name
        parts = command.commands.values() if isinstance(command, click.Group) else [command]
        for part in parts:
            assert part.help, part.name
            assert "--json" in {word for p in part.params for word in p.opts}, name


def test_help_loads_nothing_heavy_and_lists_commands_and_exit_codes() -> None:
    code = (
        "import sys; from marco_search.cli.main import main; main(['--help']); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    heavy = {"rich", "pydantic", "celery", "sqlalchemy", "numpy", "psycopg"}
    assert not heavy & set(done.stdout.split())
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    assert "Exit codes:" in done.stdout


def test_exit_codes_in_the_help_are_those_of_the_errors() -> None:
    documented = {
        int(line.split()[0])
        for line in main_module.EXIT_CODES.splitlines()
        if line.strip()[:1].isdigit()
    }
    classes = [e for e in vars(errors).values() if isinstance(e, type)]
    codes = {e.exit_code for e in classes if issubclass(e, MarcoError)}
    assert codes | {0, 7, 9, 10, 70, 130} == documented


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidJob("question", "empty or blank"), 2),
        (errors.JobNotFound("no job x"), 3),
        (errors.DatabaseUnavailable("not there"), 4),
        (errors.ModelRefused("no"), 5),
        (errors.WaitTimeout("too long"), 6),
    ],
)
def test_an_error_is_a_sentence_and_an_exit_code(
    raising: Any, capsys: pytest.CaptureFixture[str], error: MarcoError, code: int
) -> None:
    raising(error)
    assert main(["boom"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"marco: {error}\n"
    assert main(["boom", "--json"]) == code
    expected = {"type": type(error).__name__, "message": str(error), "exit_code": code}
    assert error_json(capsys) == expected


def test_a_bug_is_one_line_with_its_traceback_in_a_file(
    raising: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(KeyError("x"))
    assert main(["boom"]) == 70
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "KeyError: 'x'" in err
    path = Path(err.partition("its traceback is in ")[2].partition(";")[0])
    assert "Traceback (most recent call last)" in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()
    assert main(["boom", "--debug"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_without_a_place_for_its_traceback_it_is_printed(
    raising: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(KeyError("x"))
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    assert main(["boom"]) == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("its traceback is above\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_disk_that_takes_no_more_is_no_bug(
    raising: Any, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    raising(OSError(number, os.strerror(number)))
    assert main(["boom"]) == 1
    assert capsys.readouterr().err == f"marco: {os.strerror(number)}\n"


def test_a_message_that_nobody_gets_changes_no_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "marco_search.cli.main", "no"], stderr=full)
    assert done.returncode == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_exits_with_130_and_no_traceback(
    raising: Any, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    raising(error)
    assert main(["boom"]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted."
    assert main(["boom", "--json"]) == 130
    assert json.loads(capsys.readouterr().err)["error"]["exit_code"] == 130


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["solve"], ["status", "--nonsense"], ["sql", "x", "--limit", "-1"]]
)
def test_bad_arguments_exit_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    assert "Usage: marco" in capsys.readouterr().err
    assert main([*arguments, "--json"]) == 2
    assert error_json(capsys)["type"] == "UsageError"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["statsu"], "no such command 'statsu'; did you mean 'status'?"),
        (["dead", "lst"], "no such command 'lst'; did you mean 'list'?"),
        (["status", "--limt", "3"], "no such option '--limt'; did you mean '--limit'?"),
        (["replay", "none.jsonl"], "none.jsonl: no such file"),
        (
            ["verify", "--public-key", "00" * 32],
            "--public-key needs --anchor: it is anchors that are signed",
        ),
        (
            ["export", "out", "--format", "otlp-json", "--table", "jobs"],
            "--table and --format parquet are for files of rows, not traces",
        ),
        (
            ["export", "--otlp", "http://localhost:4318", "--format", "parquet"],
            "--table and --format parquet are for files of rows, not traces",
        ),
        (
            ["quota", "acme", "-1"],
            "no such option '-1'; a number is 0 or more, and a text that begins with \"-\" goes "
            'after "--"',
        ),
        (
            ["quota", "acme", "--", "-1"],
            "'-1' is not a number of jobs; give one, 0 or more, or \"default\"",
        ),
        (
            ["submit", "--question", "1 + 1?", "--expires-in", "1h"],
            "invalid value for '--expires-in': '1h' is not a number",
        ),
        (
            ["serve", "--port", "http"],
            "invalid value for '--port': 'http' is not a whole number",
        ),
        (
            ["batch", "status", "0199f3a2"],
            "invalid value for '[ID]': '0199f3a2' is not a full id",
        ),
        (
            ["archive", "months", "--before", "2026-13"],
            "invalid value for '--before': '2026-13' is not a time; write it like 2026-11, "
            "2026-11-28",
        ),
        (
            ["export", "out", "--since", "yesterday"],
            "invalid value for '--since': 'yesterday' is not a time; write it like 2026-11-28, "
            "2026-11-28T09:00:00, 2026-11-28T09:00:00+0000",
        ),
        (
            ["model", "get", "gpt-2"],
            "invalid value for 'NAME': 'gpt-2' is not 'smollm2'",
        ),
        (
            ["submit", "What is 17 x 23?"],
            "What is 17 x 23?: No such file or directory; a question goes after --question",
        ),
    ],
)
def test_bad_arguments_are_said_as_all_errors_are(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"marco: {said}"


@pytest.mark.parametrize("words", [[], ["keys"], ["dead"]])
def test_without_a_command_the_help_is_shown_as_it_is(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    whole = capsys.readouterr().out
    assert main(words) == 2
    assert capsys.readouterr().err == whole
    assert main([*words, "--json"]) == 2
    assert capsys.readouterr().err


def test_help_and_json_may_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "dead", "list"]) == 0
    assert "Usage: marco dead list" in capsys.readouterr().out
    assert main(["--json", "roles", "--sql"]) == 0
    assert json.loads(capsys.readouterr().out)["sql"].startswith("BEGIN;")
    assert main(["--json", "solve", "--kind", "none", "--", "-1 + 1 = ?"]) == 2
    assert error_json(capsys)["type"] == "InvalidJob"
    assert main(["solve", "--kind", "none", "--", "--json"]) == 2
    assert capsys.readouterr().err.startswith("marco: kind: ")


def test_a_full_disk_or_a_missing_folder_is_no_bug(
    raising: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(OSError(errno.ENOSPC, "No space left on device"))
    assert main(["boom"]) == 1
    assert capsys.readouterr().err == "marco: No space left on device\n"
    raising(PermissionError(errno.EACCES, "Permission denied", "/x/report.md"))
    assert main(["boom"]) == 2
    assert capsys.readouterr().err == "marco: /x/report.md: Permission denied\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f'"{sys.executable}" -m marco_search.cli.main --help | head -c 1'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True)
    assert done.stderr == b""


@pytest.mark.parametrize("command", ["status", "watch", "wait", "results"])
def test_nothing_is_made_where_nothing_is_stored(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command]) == 4
    assert "nothing is stored under" in capsys.readouterr().err
    assert not Path(os.environ["MARCO_HOME"]).exists()


def test_a_bad_setting_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "LEASE_S": "soon", "EMBEDDED_ROWS": "0", "TENANT": "x" * 70, "LOG_LEVEL": "loud",
        "REWARD_SCALE": "x", "VERIFIERS": '{"a": 3}',
    }.items():  # fmt: skip
        monkeypatch.setenv(f"MARCO_{name}", value)
    assert main(["status"]) == 2
    assert set(capsys.readouterr().err.removeprefix("marco: ").strip().split("; ")) == {
        "MARCO_LEASE_S: must be a number",
        "MARCO_EMBEDDED_ROWS: must be at least 1",
        "MARCO_TENANT: must have at most 64 characters",
        "MARCO_LOG_LEVEL: must be debug, info, warning, error or critical",
        "MARCO_REWARD_SCALE: must be 'probability' or 'logit'",
        "MARCO_VERIFIERS: each must be a command (a list of words) or an address (http://...), "
        "with a name",
    }


def test_a_file_with_bad_lines_is_refused_before_any_service_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"kind": "reasoning", "question": "1+1?"}\nnonsense\n{"kind": "poem"}\n')
    for command in ("submit", "demo"):
        assert main([command, str(path)]) == 2
        err = capsys.readouterr().err
        assert "2 bad lines, nothing was submitted" in err
        assert "line 2" in err
        assert "line 3, kind" in err
    assert main(["submit", str(path), "--json"]) == 2
    wrong = json.loads(capsys.readouterr().err)["error"]["errors"]
    assert [(entry["line"], entry["field"]) for entry in wrong] == [(2, None), (3, "kind")]
    assert not Path(os.environ["MARCO_HOME"]).exists()


def test_submit_wants_a_file_or_a_question_and_options_where_they_belong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["submit"]) == 2
    assert main(["submit", "file", "--question", "1+1?"]) == 2
    assert main(["submit", "file", "--kind", "translation"]) == 2
    assert main(["submit", "--question", " "]) == 2
    assert "question: empty or blank" in capsys.readouterr().err


def test_the_library_call_is_imported_from_the_package() -> None:
    code = "from marco_search import solve; import marco_search; print(callable(solve))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "True\n", done.stderr


class Solved:
    """`marco solve` on the toy model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr("marco_search.engine.open_runtime", lambda settings: ToyRuntime())
        self._capsys = capsys

    def __call__(self, *words: str) -> str:
        assert main(["solve", "1+1?", "--rollouts", "6", "--no-early-stop", *words]) == 0
        return self._capsys.readouterr().out


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Solved:
    return Solved(monkeypatch, capsys)


def test_solve_prints_the_answer_first_and_the_tree_on_request(solved: Solved) -> None:
    plain = solved()
    assert plain.splitlines()[0]
    assert "6 rollouts" in plain
    assert "visits" not in plain
    with_tree = solved("--tree")
    assert with_tree.startswith(plain.splitlines()[0])
    assert "      6   ." in with_tree


def test_solve_in_json_has_the_result_and_the_tree(solved: Solved) -> None:
    data = json.loads(solved("--json"))
    assert data["state"] == "succeeded"
    assert data["rollouts"] == 6
    assert "thought" not in data["answers"][0]
    assert "tree" not in data
    full = json.loads(solved("--json", "--tree", "--thought", "--expected", "no such answer"))
    assert full["correct"] is False
    assert "thought" in full["answers"][0]
    assert len(full["tree"]["nodes"]) == full["nodes"] + 1
    assert full["tree"]["winning_path"][0] == 0


def test_help_names_every_strategy_kind_and_way_to_reflect() -> None:
    command = cli.get_command(click.Context(cli), "solve")
    assert command is not None
    helps = " ".join(p.help or "" for p in command.params if isinstance(p, click.Option))
    named = set(re.findall(r"[a-z][\w-]*", helps))
    assert {*STRATEGIES, *ReflectionPolicy, *KINDS} <= named
    for name in ("strategy", "rollouts", "answers"):
        default = getattr(SearchOptions(), name)
        assert re.search(rf"{default} \(default\)|\(default {default}\)", helps), name


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--rollouts", "0"], "options.rollouts"),
        (["--strategy", "setp"], "options.strategy"),
        (["--kind", "poem"], "kind"),
        (["--kind", "translation", "--source", "Klingon"], "source"),
    ],
)
def test_solve_names_the_field_that_is_wrong(
    capsys: pytest.CaptureFixture[str], options: list[str], field: str
) -> None:
    assert main(["solve", "1+1?", *options]) == 2
    assert capsys.readouterr().err.startswith(f"marco: {field}: ")


def test_a_home_that_is_no_folder_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MARCO_HOME", "/dev/null")
    for command in (["status"], ["submit", "--question", "1 + 1?"]):
        settings_module.load.cache_clear()
        assert main(command) == 4
        assert "/dev/null" in capsys.readouterr().err
    # Of such a name, as of one in a closed folder, not even its kind can be asked.
    monkeypatch.setenv("MARCO_HOME", "x" * 300)
    settings_module.load.cache_clear()
    assert main(["up"]) == 4
    assert "set MARCO_HOME to a folder that you can write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("DATABASE_URL", "postgresql://u:SeCrEt99%zz@h/x"),
        ("DATABASE_URL", "postgresql://u:SeCrEt99@[::1/x"),
        ("DATABASE_URL", "postgresql://u:a/SeCrEt99@h/x"),
        ("DATABASE_URL", "postgresql:/u:SeCrEt99@h/x"),
        ("DATABASE_URL", "mysql://u:SeCrEt99@h/x"),
        ("REDIS_URL", "redis://:SeCrEt99#@127.0.0.1:1"),
        ("REDIS_URL", "redis://:SeCrEt99@127.0.0.1:1/jobs"),
        ("REDIS_URL", "SeCrEt99@h"),
    ],
)
def test_no_command_repeats_the_password_of_an_address_it_refuses_or_starts_anything(
    name: str,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The other service would be the embedded one."""
    monkeypatch.setenv(name, address)
    settings_module.load.cache_clear()
    commands = [["submit", "--question", "1 + 1?"], ["up"]]
    if name == "DATABASE_URL":
        commands += [["status"], ["migrate"], ["roles"], ["scheduler"], ["verify", "--debug"]]
    for words in commands:
        assert main(words) == 2, words
        assert "SeCrEt99" not in str(capsys.readouterr()), words
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [("worker", "MARCO_HEARTBEAT_S", "40"), ("console", "MARCO_CONSOLE_TOKEN", "short")],
)
def test_a_process_that_would_not_run_starts_no_service(
    command: str,
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(name, value)
    settings_module.load.cache_clear()
    assert main([command]) == 2
    assert f"{name}: " in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("profile list >&-", 0, ""),
        ("--help >&-", 0, ""),
        ("solve - <&-", 2, "question: empty"),
        ("nonsense 2>&-", 2, ""),
        ("profile show nope <&- >&- 2>&-", 2, ""),
        ("profile show pocket | head -c 1", 0, ""),
        ("solve 2+3 --tree | true", 0, ""),
    ],
)
def test_closed_streams_are_no_bug(words: str, code: int, said: str) -> None:
    program = Path(sys.executable).with_name("marco")
    command = ["bash", "-o", "pipefail", "-c", f'"{program}" {words}']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert "bug" not in done.stderr


def test_a_current_folder_that_was_removed_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MARCO_HOME")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["status"]) == 2
    assert "the current folder was removed" in capsys.readouterr().err


def test_a_setting_s_old_name_is_a_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MARCO_WORKER_SWEEPS", "true")
    renamed = "MARCO_WORKER_SWEEPS is now MARCO_WORKER_SCHEDULER"
    main(["status"])
    assert capsys.readouterr().err.splitlines()[0] == f"marco: {renamed}"
    settings_module.load.cache_clear()
    main(["status", "--json"])
    assert json.loads(capsys.readouterr().err.splitlines()[0]) == {"notice": renamed}
    monkeypatch.setenv("MARCO_WORKER_SWEEPS", "")  # as compose files have what is not set
    settings_module.load.cache_clear()
    main(["status"])
    assert capsys.readouterr().err.startswith("marco: nothing is stored")


def test_an_example_without_an_answer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text('{"question": "q", "answer": 1}\n{"question": "q", "answer": null}\n')
    assert main(["solve", "1 + 1?", "--examples", str(file)]) == 2
    assert "line 2: needs an object with question and answer" in capsys.readouterr().err
