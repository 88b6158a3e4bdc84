"""`make audit`: are there known vulnerabilities in what is locked?

Asks PyPI's advisories about the versions in ops/*.lock, with pip-audit in a throw-away environment.
Exits with 1 if there are any; with 0 and a sentence where no advisories can be reached, which says
nothing about the locks.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

LOCKS = sorted(Path(__file__).parent.glob("*.lock"))
_PIP_AUDIT = "pip-audit==2.10.1"
_LIMIT_S = 300  # it tries an index that does not answer again, for each package
_UNREACHED = re.compile("not found on PyPI|connect|timed out|resolve|no matching dist", re.I)


def main() -> int:
    """Audit the locks. Returns the exit code."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        scripts = Path(folder, "bin")
        found, said = _run(scripts / "pip", "install", "--quiet", _PIP_AUDIT)
        for lock in LOCKS if not found else ():
            print(lock.name, flush=True)
            # --strict: a package without advisories counts as one that was not looked at.
            options = ["--disable-pip", "--no-deps", "--strict", "--progress-spinner", "off"]
            found, said = _run(scripts / "pip-audit", *options, "-r", str(lock))
            print(said)
            if found and _UNREACHED.search(said):
                break
            failed |= found
    if found and _UNREACHED.search(said):
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
    sys.exit(main())
