"""`make bench`: runs the benchmarks, or those that are named, each in its own process."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("queue", "runtime", "store")

if __name__ == "__main__":
    wanted = sys.argv[1:] or NAMES
    if unknown := set(wanted) - set(NAMES):
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    runs = [subprocess.run([sys.executable, "-m", f"ops.bench.{name}"]) for name in wanted]
    sys.exit(max(run.returncode for run in runs))
