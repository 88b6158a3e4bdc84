"""`make check`: lint, format, types, and whether the migrations lead to what the models say.

All run even when one fails. Exits with 1 if any did.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from marco_search import settings
from marco_search.local import local_services, purge

ROOT = Path(__file__).resolve().parents[1]
_CHECKS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy",),
}
_MIGRATIONS = ("marco_search.migrations.check",)


def main() -> int:
    """Run all checks. Returns the exit code."""
    results = {name: _passes(name, command) for name, command in _CHECKS.items()}
    if settings.load().database_url is not None:
        results["migrations"] = _passes("migrations", _MIGRATIONS)
    else:
        with tempfile.TemporaryDirectory(prefix="marco-check-") as folder:
            Path(folder).chmod(0o711)  # the servers' own account must be able to enter
            home = Path(folder, "home")
            with local_services(home) as urls:
                results["migrations"] = _passes("migrations", _MIGRATIONS, urls.database_url)
            purge(home)
    failed = [name for name, passed in results.items() if not passed]
    print(f"{', '.join(failed)} failed" if failed else "all checks passed")
    return 1 if failed else 0


def _passes(name: str, command: tuple[str, ...], database_url: str = "") -> bool:
    print(f"--- {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    env = {**os.environ, **({"DATABASE_URL": database_url} if database_url else {})}
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env, check=False)
    print(f"--- {name}: {time.monotonic() - started:.1f} s", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
