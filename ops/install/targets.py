"""The targets of the bootstrap: what each needs and which command it becomes."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from ops.install import host

# Target -> (needs the packages for tests and checks, program in .venv/bin, its arguments).
COMMANDS: dict[str, tuple[bool, str, tuple[str, ...]]] = {
    "demo": (False, "marco", ("demo",)),
    "test": (True, "python", ("-m", "pytest")),
    "check": (True, "python", ("-m", "ops.checks")),
    "bench": (True, "python", ("-m", "ops.bench")),
    "paper-table": (True, "python", ("-m", "ops.bench.paper_table")),
    "up": (False, "marco", ("up",)),
    "down": (False, "marco", ("down",)),
    "test-sglang": (True, "python", ("-m", "pytest", "tests/sglang")),
    "test-tamper": (
        True,
        "python",
        ("-m", "pytest", "-q", "-s", "tests/integration/test_tamper.py"),
    ),
    "bench-store": (True, "python", ("-m", "ops.bench.store")),
    "bench-runtime": (True, "python", ("-m", "ops.bench.runtime")),
    "bench-queue": (True, "python", ("-m", "ops.bench.queue")),
    "test-faults": (True, "python", ("-m", "tests.faults.run")),
    "doctor": (False, "marco", ("doctor",)),
}


def run(target: str, words: list[str]) -> NoReturn:
    """Install what `target` needs, then become its command, in the root of the checkout."""
    if sys.platform == "win32":  # before fcntl is imported
        host.require_usable()
    from ops.install import environment

    dev, program, arguments = COMMANDS.get(target, (True, "", ()))
    try:
        environment.ensure(dev=dev)
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted. Run it again: it starts over cleanly.") from None
    if not program:
        print(f"Installed. Next: make demo, or {environment.VENV}/bin/marco --help")
        raise SystemExit(0)
    os.chdir(environment.ROOT)
    scripts = environment.VENV / "bin"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    env["PATH"] = f"{scripts}{os.pathsep}{env.get('PATH', os.defpath)}"
    env["VIRTUAL_ENV"] = str(environment.VENV)
    command = [str(scripts / program), *arguments, *words]
    os.execve(command[0], command, env)
