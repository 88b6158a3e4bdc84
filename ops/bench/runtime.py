"""How busy searches keep an engine: `make bench-runtime` prints a table, writes a file.

--searches N   searches at once (64)        --no-real    leave the real SGLang server out
--rollouts N   of each (32)                 --no-peers   leave the other projects out
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from marco_search import settings
from ops.bench.engine import core
from ops.bench.engine.bare import replay, replay_without_order
from ops.bench.engine.searches import Run, job, many, one
from ops.bench.engine.simulated_server import Simulated, simulated
from ops.bench.peers import compare
from ops.sglang_cpu import environment

# Key -> (what it is, goal).
MEANING = {
    "throughput_ratio": ("tokens/s of our searches / of a bare aiohttp client", ">= 0.95"),
    "throughput_ratio_no_order": ("the same, if it need not wait for the end of a round", ""),
    "searches": ("searches at once, one a process", ""),
    "tokens_per_s": ("tokens/s of ours", ""),
    "bare_tokens_per_s": ("tokens/s of the bare client, in our order", ""),
    "no_order_tokens_per_s": ("tokens/s of the bare client, always full", ""),
    "peak_in_flight": ("requests in flight, one search, budget of 32, parallel=32", "32"),
    "peak_in_flight_default": ("the same with the strategy's own width", ""),
    "search_ms_per_node": ("processor time of the search per node, nothing kept, ms", "< 0.1"),
    "persisted_ms_per_node": ("time of the search per node, kept in Postgres, ms", "< 1"),
    "discarded_tokens": ("tokens that the server wrote and no rollout holds", "0"),
    "simulated_cached_prompt_share": ("prompt tokens from the cache, simulated server", ">= 0.95"),
    "simulator_late_share": ("time the simulation ran behind its plan, ours", ""),
    "bare_simulator_late_share": ("the same, bare client", ""),
    "cached_prompt_share": ("prompt tokens from the prefix cache, real server", ">= 0.95"),
    "parity_max_logprob_delta": ("largest difference, embedded and real server", "<= 0.001"),
    "load_before": ("load average of the machine when it began", ""),
}


def measure(
    searches: int = 64, rollouts: int = 32, *, real: bool | None = None, others: bool = False
) -> dict[str, Any]:
    """All figures, by their keys. `real` None: the real server if it is installed already.

    `others`: the other projects as well, which takes some minutes.
    """
    found: dict[str, Any] = {"searches": searches, "rollouts": rollouts}
    found["load_before"] = os.getloadavg()[0]
    # Before there are other processes that would take its time.
    found["search_ms_per_node"] = min(core.milliseconds_per_node(seed=i)[0] for i in range(5))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # the services' own account must pass
        found["persisted_ms_per_node"] = core.persisted(Path(folder) / "home")
    with simulated() as server:
        step = many(server, count=searches, rollouts=rollouts)
        found |= _throughput(server, step)
        found |= _peaks(server)
        if others:
            best = many(server, count=searches, rollouts=rollouts, strategy="best-of-n")
            found |= compare.ours(server, {"step": step, "best-of-n": best}, rollouts)
            found |= compare.measure(server, searches, rollouts)
    if environment.installed() if real is None else real:
        from ops.bench.engine.real import measure as measure_real

        return found | measure_real()
    nothing = dict.fromkeys(("cached_prompt_share", "parity_max_logprob_delta"))
    return found | nothing | {"real_skipped": "it was not asked for"}


def _throughput(server: Simulated, run: Run) -> dict[str, Any]:
    ours, seconds, results = run.counters, run.seconds, run.results
    server.reset()
    bare_seconds = asyncio.run(replay(server.url, [r["rounds"] for r in results]))
    bare = server.counters()
    server.reset()
    full_seconds = asyncio.run(
        replay_without_order(server.url, [r["rounds"] for r in results], ours.peak_running)
    )
    if ours.generated != bare.generated:
        raise SystemExit(
            f"{ours.generated} tokens asked for by ours, {bare.generated} by the other"
        )
    return {
        "throughput_ratio": bare_seconds / seconds,
        "throughput_ratio_no_order": full_seconds / seconds,
        "no_order_tokens_per_s": ours.generated / full_seconds,
        "tokens_per_s": ours.generated / seconds,
        "bare_tokens_per_s": bare.generated / bare_seconds,
        "seconds": seconds,
        "bare_seconds": bare_seconds,
        "peak_running": ours.peak_running,
        "requests": ours.requests - ours.commits,
        "commits": ours.commits,
        "failed": sum(r["failed"] for r in results),
        "discarded_tokens": ours.generated - sum(r["generated_tokens"] for r in results),
        "simulated_cached_prompt_share": sum(r["cached_tokens"] for r in results)
        / sum(r["prompt_tokens"] for r in results),
        "simulator_late_share": ours.late_s / seconds,
        "bare_simulator_late_share": bare.late_s / bare_seconds,
    }


def _peaks(server: Simulated) -> dict[str, Any]:
    found = {}
    for key, changes in (
        ("peak_in_flight", {"parallel": 32, "root_width": 32}),
        ("peak_in_flight_default", {}),
    ):
        server.reset()
        one(server.url, job(0, "step", 32), **changes)
        found[key] = server.counters().peak_running
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | value | goal | what it is |", "|---|---|---|---|"]
    for key, (what, goal) in MEANING.items():
        if found.get(key) is not None:
            value = found[key]
            shown = f"{value:.3g}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"
            lines.append(f"| `{key}` | {shown} | {goal} | {what} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="make bench-runtime")
    parser.add_argument("--searches", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--no-real", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    asked = parser.parse_args()
    found = measure(
        asked.searches, asked.rollouts, real=not asked.no_real, others=not asked.no_peers
    )
    out = settings.load().home / "bench" / "runtime.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    if "real_skipped" in found:
        print(f"The real server was left out: {found['real_skipped']}")
    if not asked.no_peers:
        print(f"\n{compare.table(found)}")
    print(f"Written to {out}")


if __name__ == "__main__":
    main()
