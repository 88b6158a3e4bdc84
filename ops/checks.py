"""`make check`: lint, format, types, and whether the migrations lead to what the models say.

All four run even when one fails. Exits with 1 if any did.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from marco_search import settings
from marco_search.local import local_services, purge

ROOT = Path(__file__).resolve().parents[1]
_BEFORE_SERVICES = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy",),
}


def main() -> int:
    """Run all checks. Returns how the program shall exit."""
    results = {name: _passes(name, command) for name, command in _BEFORE_SERVICES.items()}
    with _database() as url:
        variables = {**os.environ, "DATABASE_URL": url}
        results["migrations"] = _passes("migrations", ("marco_search.migrations.check",), variables)
    failed = [name for name, passed in results.items() if not passed]
    print(f"{', '.join(failed)} failed" if failed else "all checks passed")
    return 1 if failed else 0


def _passes(name: str, command: tuple[str, ...], env: dict[str, str] | None = None) -> bool:
    print(f"--- {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env, check=False)
    print(f"--- {name}: {time.monotonic() - started:.1f} s", flush=True)
    return done.returncode == 0


@contextlib.contextmanager
def _database() -> Iterator[str]:
    """URL of DATABASE_URL's server, or of an embedded one made for this run."""
    configured = settings.load().database_url
    if configured is not None:
        yield configured.get_secret_value()
        return
    with tempfile.TemporaryDirectory(prefix="marco-check-") as folder:
        Path(folder).chmod(0o711)
        home = Path(folder, "home")
        with local_services(home) as urls:
            yield urls.database_url
        purge(home)


if __name__ == "__main__":
    sys.exit(main())
