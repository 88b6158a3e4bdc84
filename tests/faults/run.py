"""`make test-faults`: the fault suite's long form.

    python -m tests.faults.run [--short] [--seed N]

Prints a table and writes MARCO_HOME/faults/faults.json. The exit code is 1 if a job was lost,
doubled, or differs from what an uninterrupted search gives, or if anything leaked.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from marco_search import settings
from tests.faults import suite

MUST_BE_ZERO = ("lost", "duplicated", "committed_tokens_regenerated", "trees_different")
MUST_BE_EMPTY = ("inconsistencies", "leaks")
MOST_STOP_S = 35  # MARCO_STOP_S and the time to kill what hangs, on a busy machine
_SHOWN = (
    "jobs", "faults", "lost", "duplicated", "tokens_generated", "tokens_committed",
    "uncommitted_tokens_regenerated", "committed_tokens_regenerated", "median_recovery_s",
    "p95_recovery_s", "longest_stop_s", "trees_compared", "trees_different", "chain_links",
    "window_jobs", "window_messages_gone", "window_lost", "window_plain_celery_lost",
    "storm_seconds", "seconds",
)  # fmt: skip


def table(figures: dict[str, Any]) -> str:
    """The figures in two tables, as docs/durability.md shows them."""
    lines = ["| fault | times | median recovery, s | longest, s |", "|---|---|---|---|"]
    for kind, times in sorted(figures["kinds"].items()):
        median = figures["median_recovery_s_by_kind"][kind]
        longest = figures["longest_recovery_s_by_kind"][kind]
        lines.append(f"| {kind} | {times} | {median:.1f} | {longest:.1f} |")
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {figures[name]} |" for name in _SHOWN]
    return "\n".join(lines)


def wrong(figures: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    found = [f"{name}: {figures[name]}" for name in MUST_BE_ZERO if figures[name] != 0]
    if figures["longest_stop_s"] > MOST_STOP_S:
        found.append(f"longest_stop_s: {figures['longest_stop_s']}")
    return found + [f"{name}: {item}" for name in MUST_BE_EMPTY for item in figures[name]]


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="make test-faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the form that `make test` runs")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default: 1)")
    given = parser.parse_args()
    scale = suite.SHORT if given.short else suite.LONG
    figures = suite.run(scale, seed=given.seed, say=lambda line: print(line, flush=True))
    folder = settings.load().home / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "faults.json"
    file.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\n{table(figures)}\n\n{file}")
    for line in wrong(figures):
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong(figures) else 0


if __name__ == "__main__":
    sys.exit(main())
