"""optillm: its proxy with the approach mcts, asked through OpenAI's client, as its README has it.

One simulation makes 11 completions: three actions and what the user may say to each, then one
more round of it and a rating. The proxy is one process; the processor time is the proxy's alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI

from ops.bench.peers import adapter

COMPLETIONS_A_SIMULATION = 11
_START_S = 120.0


def _start(task: adapter.Task) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "import sys; from optillm import main; sys.exit(main())"]
    command += ["--base-url", f"{task.url}/v1", "--port", str(port), "--log", "error"]
    env = os.environ | {"OPENAI_API_KEY": "none"}
    with Path(f"{sys.argv[2]}.log").open("wb") as log:
        proxy = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    url, late = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
    while proxy.poll() is None and time.monotonic() < late:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10):
                return proxy, url
        except OSError:
            time.sleep(0.2)
    proxy.kill()
    raise SystemExit(f"the proxy did not start: {Path(f'{sys.argv[2]}.log').read_text()[-500:]}")


def _cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """All questions at once."""
    task = adapter.task()
    simulations = max(1, round(task.budget / COMPLETIONS_A_SIMULATION))
    proxy, url = _start(task)
    outcome = adapter.Outcome()

    def ask(question: str) -> tuple[int, str]:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)
        try:
            client.chat.completions.create(
                model="mcts-simulated",
                messages=[
                    {"role": "system", "content": task.system},
                    {"role": "user", "content": question},
                ],
                extra_body={"mcts_simulations": simulations},
            )
        except Exception as raised:
            return 0, f"{type(raised).__name__}: {raised}"
        return simulations * COMPLETIONS_A_SIMULATION, ""

    try:
        with ThreadPoolExecutor(len(task.questions)) as pool:
            before, began = _cpu_s(proxy.pid), time.monotonic()
            for kept, error in pool.map(ask, task.questions):
                outcome.kept.append(kept)
                outcome.errors += [error] if error else []
            outcome.seconds = time.monotonic() - began
            outcome.cpu_s = _cpu_s(proxy.pid) - before
    finally:
        proxy.terminate()
        proxy.wait()
    adapter.done(outcome)


if __name__ == "__main__":
    main()
