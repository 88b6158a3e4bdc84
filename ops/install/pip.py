"""Finding a pip that can install into the new environment, and calling it.

Where packages come from is pip's own configuration: nothing here names an index.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

NO_PIP = """\
No pip of version 22.3 or later was found, and this Python has no ensurepip to make one.
Install one: on Debian or Ubuntu `apt-get install python3-venv` (or python3-pip), on Fedora
`dnf install python3-pip`; or set MARCO_PYTHON to a Python 3.11, 3.12 or 3.13 that has pip."""
OLDEST = (22, 3)  # the first with --python


def outside_pip() -> list[str]:
    """Command of a pip outside the environment; empty when there is none recent enough."""
    # The last: the Python that a virtual environment without pip was made with.
    base = getattr(sys, "_base_executable", None)
    for python in (sys.executable, shutil.which("python3"), base):
        if python is None:
            continue
        done = subprocess.run(
            [python, "-m", "pip", "--version"], capture_output=True, text=True, env=environment()
        )
        version = re.match(r"pip (\d+)\.(\d+)", done.stdout)
        if done.returncode == 0 and version and tuple(map(int, version.groups())) >= OLDEST:
            return [python, "-m", "pip"]
    return []


def create_environment(venv: Path) -> list[str]:
    """Make an empty virtual environment. Returns the pip command that installs into it."""
    python = str(venv / "bin" / "python")
    outside = outside_pip()
    if not outside and importlib.util.find_spec("ensurepip") is None:
        raise SystemExit(NO_PIP)
    # Debian without python3-venv has no ensurepip: --without-pip works there, too.
    options = ["--without-pip"] if outside else []
    _run([sys.executable, "-m", "venv", *options, str(venv)], "The virtual environment")
    return [*outside, "--python", python] if outside else [python, "-m", "pip"]


_OPTIONS = ["--quiet", "--no-deps", "--only-binary", ":all:", "--no-compile", "--no-input"]
_OPTIONS += ["--disable-pip-version-check"]


def install(pip: list[str], arguments: list[str], *, timeout_s: float | None = None) -> None:
    """`pip install` of exactly `arguments`: wheels only, nothing added, nothing compiled.

    Bytecode is left to the first import: compiling all of it takes as long as the rest.
    Raises SystemExit, with the end of what pip said, or subprocess.TimeoutExpired.
    """
    _run([*pip, "install", *_OPTIONS, *arguments], "Installing packages", timeout_s)


def needs(pip: list[str], requirement: str) -> list[str]:
    """What the package that pip would take for `requirement` asks for; installs nothing."""
    report = [*pip, "install", *_OPTIONS, "--dry-run", "--report", "-", requirement]
    done = _run(report, f"Looking for {requirement}", 60.0)
    (found,) = json.loads(done)["install"]
    return list(found["metadata"].get("requires_dist") or ())


def environment() -> dict[str, str]:
    """This process' variables less those that would send packages elsewhere."""
    elsewhere = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
    env = {name: value for name, value in os.environ.items() if name not in elsewhere}
    env["PIP_USER"] = "0"
    if "HOME" not in env and not {"PIP_CACHE_DIR", "XDG_CACHE_HOME"} & env.keys():
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:  # no home at all: pip would make a folder called "~"
            env["PIP_NO_CACHE_DIR"] = "1"
    return env


def _run(command: list[str], what: str, timeout_s: float | None = None) -> str:
    """What it printed on standard output."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=timeout_s
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise SystemExit(
            f"{tail}\n\n{what} failed (exit status {done.returncode}). If packages could not be "
            "fetched, check pip's configuration\n(`python3 -m pip config list`, a proxy, the "
            "network), then run the same command again: it starts over cleanly."
        )
    return done.stdout
