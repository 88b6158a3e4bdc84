"""`make check`: lint, format, types, imports, and whether the migrations lead to the schema.

All run even when one fails. Exits with 1 if any did.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy",),
    "imports": ("lint-imports", "--no-cache"),
    "migrations": ("pytest", "-q", "tests/integration/test_migrations.py", "-k", "agree"),
}


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


if __name__ == "__main__":
    sys.exit(main())
