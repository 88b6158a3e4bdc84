"""A stack of containers of a test's own: a copy of the clone, a project, an image and ports."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARCO = Path(sys.executable).with_name("marco")
OLDER = "03ee944bed5b"  # the last that writes audit format 3: a newer one is not fixed yet
PORTS = ("POSTGRES", "REDIS", "CONSOLE", "API", "FLOWER")
CONNECTIONS = 40  # few, so that a test can take all of them
SHORT_LEASE = "MARCO_LEASE_S=12\nMARCO_HEARTBEAT_S=4\n"
"""In marco.env: jobs of a worker that died are soon another's."""


def engine_is_missing() -> str:
    """Why no containers can be run here; empty: they can."""
    for words in (["version"], ["compose", "version"]):
        try:
            done = subprocess.run(["docker", *words], capture_output=True, text=True)
        except FileNotFoundError:
            return "docker is not installed"
        if done.returncode:
            return f"no Docker engine with compose: {(done.stderr or done.stdout).strip()[-200:]}"
    return ""


class Stack:
    """What is run in the copy, and where its ports are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = f"marco-test-{uuid4().hex[:8]}"
        self.image = f"marco-search:{self.project}"
        self.ports = dict(zip(PORTS, free_ports(), strict=False))
        ours = ("MARCO_", "COMPOSE_", "DATABASE_URL", "REDIS_URL")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            **{f"{name}_PORT": str(port) for name, port in self.ports.items()},
            "COMPOSE_PROJECT_NAME": self.project,
            "STACK_IMAGE": self.image,
            "POSTGRES_CONNECTIONS": str(CONNECTIONS),
            "CLI_USER": f"{os.getuid()}:{os.getgid()}",
        }

    def run(
        self, *command: str | Path, status: int = 0, stdin: str | bytes = "", **more: str
    ) -> str:
        """What the command prints to standard output. It must end with `status`."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            list(map(str, command)), cwd=self.folder, env=self.environment | more,
            input=given, capture_output=True,
        )  # fmt: skip
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        assert done.returncode == status, (
            f"{command}: {done.returncode}\n{out[-3000:]}{err[-3000:]}"
        )
        return out if status == 0 else out + err

    def compose(self, *words: str, status: int = 0, stdin: str | bytes = "") -> str:
        """`docker compose` with these words."""
        return self.run("docker", "compose", *words, status=status, stdin=stdin)

    def up(self, *words: str) -> None:
        """Bring it up and wait until all of it is healthy."""
        self.compose("up", "-d", "--wait", *words)

    def psql(self, query: str) -> str:
        """What the superuser gets, on the server itself."""
        words = ("exec", "-T", "postgres", "psql", "-U", "postgres", "-qAtc", query, "marco")
        return self.compose(*words).strip()

    def cli(self, *words: str, stdin: str = "") -> str:
        """The command line as a container."""
        return self.compose("run", "--rm", "-T", "cli", *words, stdin=stdin)

    def url(self, login: str, password: str) -> str:
        """Postgres as it is reached from this machine."""
        return f"postgresql://{login}:{password}@127.0.0.1:{self.ports['POSTGRES']}/marco"

    def secret(self, variable: str) -> str:
        """What .env says, else the default."""
        env = self.folder / ".env"
        lines = env.read_text().splitlines() if env.exists() else []
        return dict(line.split("=", 1) for line in lines if "=" in line).get(variable, "local-only")

    def marco(self, *words: str, status: int = 0, stdin: str = "") -> str:
        """The command line of this machine, through the published ports."""
        return self.run(
            MARCO, *words, status=status, stdin=stdin,
            DATABASE_URL=self.url("marco_producer", self.secret("APP_PASSWORD")),
            REDIS_URL=f"redis://:{self.secret('REDIS_PASSWORD')}@127.0.0.1:{self.ports['REDIS']}/0",
        )  # fmt: skip

    def submit(self, *words: str, jobs: int = 4) -> list[str]:
        """The ids of so many of the demo's jobs, submitted through the published port."""
        return self.marco("submit", "-", *words, stdin=demo(jobs)).split()

    def ended(self, ids: list[str]) -> list[dict[str, Any]]:
        """The results of these jobs, in their order, when all have ended."""
        self.marco("watch", "--timeout", "600", *ids)
        lines = map(json.loads, self.marco("results", "--jsonl", *ids).splitlines())
        found = {line["job_id"]: line for line in lines}
        return [found[job_id] for job_id in ids]

    def containers(self) -> dict[str, str]:
        """The id of each service's container."""
        lines = self.compose("ps", "-a", "--format", "{{.Service}} {{.ID}}").splitlines()
        return dict(line.split() for line in lines)

    def left(self, kind: str) -> list[str]:
        """The project's containers ("ps", "-a"), networks or volumes."""
        label = f"label=com.docker.compose.project={self.project}"
        words = ("ps", "-a") if kind == "container" else (kind, "ls")
        return self.run("docker", *words, "-q", "--filter", label).split()


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """A copy of the clone in `folder`, with its image built; all of it is removed at the end."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.split("\0"):
        if name and os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    here = Stack(folder)
    try:
        here.compose("build")
        yield here
    finally:
        here.compose("--profile", "*", "down", "-v", "--remove-orphans")
        here.run("docker", "image", "rm", "-f", here.image)


@contextmanager
def older(here: Stack, folder: Path) -> Iterator[Stack]:
    """The same project in a clone as it was at OLDER."""
    archive = subprocess.run(["git", "archive", OLDER], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"the clone's history does not reach back to {OLDER}")
    old = copy(here)
    old.folder, old.image = folder, f"{here.image}-old"
    old.environment = here.environment | {"STACK_IMAGE": old.image}
    old.run("tar", "-x", stdin=archive.stdout)
    shutil.copy2(here.folder / ".env", folder)
    try:
        yield old
    finally:
        here.run("docker", "image", "rm", "-f", old.image)


def until(what: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait until `what` is true; AssertionError after so many seconds."""
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, f"not so after {seconds:g} s"
        time.sleep(0.2)


def demo(jobs: int) -> str:
    """The first lines of the demo."""
    with (ROOT / "examples" / "demo.jsonl").open() as lines:
        return "".join(islice(lines, jobs))


def free_ports() -> Iterator[int]:
    """Ports that nothing listens at, below those that outgoing connections take."""
    first = 20_000 + os.getpid() % 10_000
    for port in range(first, 32_768):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                yield port
