"""Lines and modules by room: `python -m ops.house [REVISION]`, of the product without its tests.

With a revision, what was there then is printed beside what is there now.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path, PurePosixPath

ROOMS = ("marco_search", "producer", "worker", "migrations", "ops")
Sizes = tuple[Counter[str], Counter[str]]


def sizes(revision: str | None) -> Sizes:
    """Lines and modules by room at `revision`; without one, in the working tree."""
    lines: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for name in git("ls-tree", "-r", "--name-only", revision) if revision else git("ls-files"):
        path = PurePosixPath(name)
        if path.suffix == ".py" and path.parts[0] in ROOMS:
            # The top-level package, or the part of a large one.
            inside = len(path.parts) > 2 and path.parts[0] in ("marco_search", "ops")
            room = "/".join(path.parts[: 2 if inside else 1])
            if revision:
                text = git("show", f"{revision}:{name}")
            else:
                text = Path(name).read_text("utf-8").splitlines()
            lines[room] += len(text)
            modules[room] += 1
    return lines, modules


def git(*words: str) -> list[str]:
    """The lines that a Git command prints."""
    command = ["git", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    columns = [sizes(revision) for revision in (*sys.argv[1:2], None)]
    for room in sorted({name for lines, _ in columns for name in lines}):
        cells = (f"{lines[room]:9,}{count[room]:5}" for lines, count in columns)
        print(f"{room:28}" + "".join(cells))
    print(f"{'all':28}" + "".join(f"{x.total():9,}{n.total():5}" for x, n in columns))
