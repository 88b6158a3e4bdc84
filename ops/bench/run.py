"""`make bench`: runs the benchmarks, and keeps what they measured under MARCO_HOME/bench.

    python -m ops.bench.run              all of them, each in a process of its own
    python -m ops.bench.run NAME ...     some

A benchmark is a module of ops/bench with a function `measure()` that returns flat keys with
numbers or words. They are printed and written to MARCO_HOME/bench/NAME.json.
"""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from marco_search import settings

HERE = Path(__file__).parent


def names() -> list[str]:
    """The benchmarks there are. Modules without `measure` are parts of others."""
    found = []
    for file in sorted(HERE.glob("*.py")):
        top = ast.parse(file.read_text()).body
        if any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in top):
            found.append(file.stem)
    return found


def run_one(name: str) -> None:
    """Run the benchmark in this process; print and keep what it measured."""
    result: Mapping[str, object] = importlib.import_module(f"ops.bench.{name}").measure()
    folder = settings.load().home / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{name}: {folder / f'{name}.json'}")
    for key, value in result.items():
        print(f"  {key:32} {value:.3f}" if isinstance(value, float) else f"  {key:32} {value}")


def main(wanted: list[str]) -> int:
    """Run the benchmarks in `wanted`, all when it is empty. Returns the exit code."""
    known = names()
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    if len(wanted) == 1:
        run_one(wanted[0])
        return 0
    failed = []
    for name in wanted or known:
        # Apart, so that no benchmark inherits another's threads, caches or memory.
        done = subprocess.run([sys.executable, "-m", "ops.bench.run", name], check=False)
        if done.returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
