"""Runs the peers against the simulated engine, with the load that our own searches have."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from marco_search.errors import LocalServiceFailed
from marco_search.kinds import kind_of
from marco_search.search.branches import Finish
from ops.bench.engine.searches import Run, job, one
from ops.bench.engine.simulated_server import Simulated
from ops.bench.engine.simulator import Counters
from ops.bench.peers import environment
from ops.bench.peers.adapter import Outcome, Task

# Name -> what of it runs.
PEERS = {
    "its_hub": "its_hub 1.2.0, SelfConsistency",
    "treequest": "treequest 0.3.3, AB-MCTS-A, 8 at a time",
    "optillm": "optillm 0.4.0, mcts",
    "llm_reasoners": "llm-reasoners 1.0.2, MCTS",
}
OURS = {"our_step": "marco-search, step", "our_best_of_n": "marco-search, best-of-n"}
REFUSE_EVERY = 8
_WIDTH = 8  # our tree searches' own
_TIME_S = 420.0  # of one run of one peer: the slowest takes 100 s on two quiet cores
_ROOT = Path(__file__).resolve().parents[3]


def measure(server: Simulated, searches: int, budget: int) -> dict[str, Any]:
    """Figures by keys that begin with a peer's name; `..._skipped` says why there are none."""
    try:
        python = environment.ensure()
    except LocalServiceFailed as error:
        return {"peers_skipped": str(error)}
    found: dict[str, Any] = {}
    for name in PEERS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found |= {
            f"{name}_{key}": value
            for key, value in _peer(python, name, server, searches, budget).items()
        }
    return found


def ours(server: Simulated, runs: dict[str, Run], budget: int) -> dict[str, Any]:
    """The same figures of our own searches; `runs` has those of all at once by strategy."""
    found: dict[str, Any] = {}
    for strategy, run in runs.items():
        figures = _speed(run.counters, run.seconds, sum(r["cpu_s"] for r in run.results))
        figures["kept"] = sum(budget - r["failed"] for r in run.results)
        figures["lost_searches"] = 0  # else the bench ends
        wide = {"parallel": budget, "root_width": budget} if strategy == "step" else {}
        server.reset()
        one(server.url, job(0, strategy, budget), **wide)
        figures["peak_in_flight"] = server.counters().peak_running
        server.reset(refuse_every=REFUSE_EVERY)
        search, _ = one(server.url, job(0, strategy, budget))
        figures["refused_kept"] = sum(r.finish is not Finish.FAILED for r in search.tree.rollouts)
        figures["refused_error"] = ""
        name = "our_" + strategy.replace("-", "_")
        found |= {f"{name}_{figure}": value for figure, value in figures.items()}
    return found


def _peer(python: Path, name: str, server: Simulated, searches: int, budget: int) -> dict[str, Any]:
    try:
        server.reset()
        outcome = _run(python, name, _task(server, searches, budget, _WIDTH))
        found = _speed(server.counters(), outcome.seconds, outcome.cpu_s)
        found["kept"] = sum(outcome.kept)
        found["lost_searches"] = len(outcome.errors)
        found["errors"] = "; ".join(sorted(set(outcome.errors))[:3])
        # One search, as wide as it lets itself be asked for.
        server.reset()
        _run(python, name, _task(server, 1, budget, budget))
        found["peak_in_flight"] = server.counters().peak_running
        # One search while the server refuses one request in eight for good (status 400).
        server.reset(refuse_every=REFUSE_EVERY)
        outcome = _run(python, name, _task(server, 1, budget, _WIDTH))
        found["refused_kept"] = sum(outcome.kept)
        found["refused_error"] = (outcome.errors or [""])[0][:300]
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        return {"skipped": f"{type(error).__name__}: {error}"}
    return found


def _speed(counters: Counters, seconds: float, cpu_s: float) -> dict[str, Any]:
    completions = counters.requests - counters.commits
    return {
        "seconds": seconds,
        "completions": completions,
        "completions_per_s": completions / seconds,
        "tokens_per_s": counters.generated / seconds,
        "tokens_per_completion": counters.generated / max(1, completions),
        "peak_running": counters.peak_running,
        "cpu_ms_per_completion": 1000 * cpu_s / max(1, completions),
        "cached_prompt_share": counters.cached / max(1, counters.prompt),
    }


COLUMNS = {
    "tokens_per_s": "tokens/s",
    "completions_per_s": "completions/s",
    "tokens_per_completion": "tokens a completion",
    "peak_running": "in flight, all",
    "peak_in_flight": "in flight, one search",
    "cpu_ms_per_completion": "client CPU, ms a completion",
    "cached_prompt_share": "prompt from cache",
    "lost_searches": "searches lost",
    "refused_kept": "kept when 1 in 8 is refused",
}


def table(found: dict[str, Any]) -> str:
    """The figures of all, as a Markdown table; why where there are none."""
    if "peers_skipped" in found:
        return f"The other projects were left out: {found['peers_skipped']}"
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, title in (OURS | PEERS).items():
        if f"{name}_skipped" in found:
            lines.append(f"| {title} | did not run: {found[f'{name}_skipped']} |")
            continue
        cells = [_cell(found[f"{name}_{column}"]) for column in COLUMNS]
        if found[f"{name}_refused_error"]:
            cells[-1] = "none: the search ends"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{value:.2f}" if value < 10 and isinstance(value, float) else f"{value:,.0f}"


def _task(server: Simulated, searches: int, budget: int, width: int) -> Task:
    jobs = [job(i, "step", budget) for i in range(searches)]
    return Task(
        url=server.url,
        questions=[work.question for work in jobs],
        system=kind_of(jobs[0]).messages(jobs[0])[0].content,
        budget=budget,
        width=width,
    )


def _run(python: Path, name: str, task: Task) -> Outcome:
    """The script of one peer, in the peers' environment."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "task.json", Path(folder) / "outcome.json"
        asked.write_text(json.dumps(dataclasses.asdict(task)))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "PYTHON"))}
        script = subprocess.Popen(
            [str(python), "-m", f"ops.bench.peers.with_{name}", str(asked), str(told)],
            cwd=_ROOT,
            env=kept | {"PYTHONDONTWRITEBYTECODE": "1", "HOME": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = script.communicate(timeout=_TIME_S)
        finally:
            # Whatever it has started as well: all of it is in one group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(script.pid, signal.SIGKILL)
            script.wait()
        if script.returncode or not told.exists():
            raise ValueError(f"with_{name} ended with {script.returncode}: {said.strip()[-500:]}")
        return Outcome(**json.loads(told.read_text()))
