"""`make check`: lint, format, types, imports, and whether the migrations lead to the schema.

All run even when one fails. Exits with 1 if any did. `make audit` is apart: it asks the network.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy",),
    "imports": ("lint-imports", "--no-cache"),
    "migrations": ("pytest", "-q", "tests/integration/test_migrations.py", "-k", "agree"),
}
LOCKS = sorted(Path(__file__).parent.glob("*.lock"))
_PIP_AUDIT = "pip-audit==2.10.1"
_LIMIT_S = 300  # it tries an index that does not answer again, for each package
_UNREACHED = re.compile("not found on PyPI|connect|timed out|resolve|no matching dist", re.I)


def main() -> int:
    """Run all checks. Returns the exit code."""
    results = {name: _passes(name, command) for name, command in CHECKS.items()}
    failed = [name for name, passed in results.items() if not passed]
    print(f"{', '.join(failed)} failed" if failed else "all checks passed")
    return 1 if failed else 0


def _passes(name: str, command: tuple[str, ...]) -> bool:
    print(f"--- {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], cwd=ROOT, check=False)
    print(f"--- {name}: {time.monotonic() - started:.1f} s", flush=True)
    return done.returncode == 0


def audit() -> int:
    """`make audit`: are there known vulnerabilities in what is locked? Returns the exit code.

    Asks PyPI's advisories about the versions in ops/*.lock, with pip-audit in a throw-away
    environment. 1 if there are any; 0 and a sentence where no advisories can be reached, which
    says nothing about the locks.
    """
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        scripts = Path(folder, "bin")
        found, output = _run(scripts / "pip", "install", "--quiet", _PIP_AUDIT)
        for lock in LOCKS if not found else ():
            print(lock.name, flush=True)
            # --strict: a package without advisories counts as one that was not looked at.
            options = ["--disable-pip", "--no-deps", "--strict", "--progress-spinner", "off"]
            found, output = _run(scripts / "pip-audit", *options, "-r", str(lock))
            print(output)
            if found and _UNREACHED.search(output):
                break
            failed |= found
    if found and _UNREACHED.search(output):
        print("not audited: PyPI's advisories can't be reached from here")
        return 0
    return failed


def _run(*words: str | Path) -> tuple[int, str]:
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return 1, "timed out"
    return int(done.returncode != 0), done.stdout.strip()[-4_000:]


if __name__ == "__main__":
    sys.exit(audit() if sys.argv[1:] == ["audit"] else main())
