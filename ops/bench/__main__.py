"""`make bench`: runs the benchmarks, each in its own process.

python -m ops.bench [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys

NAMES = ("embedded", "queue", "runtime", "store")


def main(wanted: list[str]) -> int:
    """Run the named benchmarks, or all of them. Returns the exit code."""
    if unknown := [name for name in wanted if name not in NAMES]:
        print(f"unknown: {', '.join(unknown)}; use {', '.join(NAMES)}", file=sys.stderr)
        return 2
    commands = [[sys.executable, "-m", f"ops.bench.{name}"] for name in wanted or NAMES]
    return max(subprocess.run(command, check=False).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
