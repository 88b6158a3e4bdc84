"""Lines and modules by room: `python -m ops.house [REVISION]`, of the product without its tests.

With a revision, what was there then is printed beside what is there now.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import PurePosixPath

ROOMS = ("marco_search", "producer", "worker", "migrations", "ops")
Sizes = tuple[Counter[str], Counter[str]]


def main(revision: str | None = None) -> None:
    """Print the table."""
    then, now = sizes(revision or "HEAD"), sizes(None)
    columns = [then, now] if revision else [now]
    for room in sorted({name for lines, _ in columns for name in lines}):
        print(
            f"{room:28}" + "".join(f"{lines[room]:9,}{count[room]:5}" for lines, count in columns)
        )
    print(f"{'all':28}" + "".join(f"{x.total():9,}{n.total():5}" for x, n in columns))


def sizes(revision: str | None) -> Sizes:
    """Lines and modules by room at `revision`; without one, in the working tree."""
    lines: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for path in _git("ls-tree", "-r", "--name-only", revision) if revision else _git("ls-files"):
        where = PurePosixPath(path)
        if where.suffix == ".py" and where.parts[0] in ROOMS:
            text = _git("show", f"{revision}:{path}") if revision else _read(path)
            lines[_room(where)] += len(text)
            modules[_room(where)] += 1
    return lines, modules


def _room(path: PurePosixPath) -> str:
    """The top-level package, or the part of a large one."""
    inside = len(path.parts) > 2 and path.parts[0] in ("marco_search", "ops")
    return "/".join(path.parts[: 2 if inside else 1])


def _git(*words: str | None) -> list[str]:
    command = ["git", *filter(None, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _read(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        return file.read().splitlines()


if __name__ == "__main__":
    main(*sys.argv[1:2])
