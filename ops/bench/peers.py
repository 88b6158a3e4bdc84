"""The same load through other projects: its_hub, treequest, optillm and llm-reasoners.

Their environment, in which `python -m ops.bench.peers NAME TASK` runs one of them, has only the
standard library and their packages: all else is imported where it is used.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ops.bench.simulator import Counters, SimulatedServer

TITLES = {
    "our_step": "marco-search, step",
    "our_best_of_n": "marco-search, best-of-n",
    "its_hub": "its_hub 1.2.0, SelfConsistency",
    "treequest": "treequest 0.3.3, AB-MCTS-A, 8 at a time",
    "optillm": "optillm 0.4.0, mcts",
    "llm_reasoners": "llm-reasoners 1.0.2, MCTS",
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
REFUSE_EVERY = 8
_LOCK = Path(__file__).with_name("peers.lock")
_WIDTH = 8  # as our tree searches have
_TIMEOUT_S = 420.0  # of one run; the slowest takes 100 s on two idle cores


@dataclass(frozen=True)
class Task:
    """What a peer is asked for: one search for each question, all at once."""

    url: str  #: of an OpenAI-compatible server, without /v1
    questions: list[str]
    system: str  #: prompt
    budget: int  #: completions, or rollouts where these consist of several
    width: int  #: generations at once in one search, where the peer takes such a number


@dataclass
class Outcome:
    """What came of it."""

    seconds: float
    cpu_s: float  #: processor time of the peer's processes
    kept: int  #: completions of all searches
    errors: list[str]  #: of searches that were lost


# -- The benchmark's side ---------------------------------------------------------------


def measure(server: SimulatedServer, searches: int, budget: int) -> dict[str, Any]:
    """Figures whose keys begin with a peer's name; `..._skipped` says why there are none."""
    from marco_search.errors import LocalServiceFailed
    from marco_search.kinds import kind_of
    from ops import environment
    from ops.bench.simulator import job

    try:
        python = environment.ensure("bench-peers", _LOCK, free_gb=2)
    except LocalServiceFailed as error:
        return {"peers_skipped": str(error)}
    jobs = [job(i, "step", budget) for i in range(searches)]
    system = kind_of(jobs[0]).messages(jobs[0])[0].content
    task = Task(server.url, [work.question for work in jobs], system, budget, _WIDTH)
    found: dict[str, Any] = {}
    for name in PEERS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            figures = _figures(partial(_run, python, name), server, task)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            figures = {"skipped": f"{type(error).__name__}: {error}"}
        found |= {f"{name}_{key}": value for key, value in figures.items()}
    return found


def _figures(run: Callable[[Task], Outcome], server: SimulatedServer, task: Task) -> dict[str, Any]:
    single = replace(task, questions=task.questions[:1])
    server.reset()
    outcome = run(task)
    found = speed(server.counters(), outcome.seconds, outcome.cpu_s)
    server.reset()
    run(replace(single, width=task.budget))  # as wide as it can be asked for
    peak = server.counters()["peak_running"]
    server.reset(REFUSE_EVERY)
    refused = run(single)
    return found | {
        "kept": outcome.kept,
        "lost_searches": len(outcome.errors),
        "peak_in_flight": peak,
        "refused_kept": refused.kept,
        "refused_error": (refused.errors or [""])[0][:300],
    }


def speed(counters: Counters, seconds: float, cpu_s: float) -> dict[str, Any]:
    """The figures of searches that ran at once."""
    completions = counters["requests"] - counters["commits"]
    return {
        "completions_per_s": completions / seconds,
        "tokens_per_s": counters["generated"] / seconds,
        "tokens_per_completion": counters["generated"] / max(1, completions),
        "peak_running": counters["peak_running"],
        "cpu_ms_per_completion": 1000 * cpu_s / max(1, completions),
        "cached_prompt_share": counters["cached"] / max(1, counters["prompt"]),
    }


def _run(python: Path, name: str, task: Task) -> Outcome:
    """One peer, in its environment. It prints its outcome last."""
    from ops import environment

    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "PYTHON"))}
    peer = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": f"{task.url}/v1"}
    command = [str(python), "-m", "ops.bench.peers", name, json.dumps(asdict(task))]
    with tempfile.TemporaryDirectory() as home, environment.running(
        command, cwd=Path(__file__).parents[2], env=kept | peer | {"HOME": home},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as script:  # fmt: skip
        output, _ = script.communicate(timeout=_TIMEOUT_S)
    if script.returncode:
        raise ValueError(f"{name} exited with {script.returncode}: {output.strip()[-500:]}")
    return Outcome(**json.loads(output.splitlines()[-1]))


def table(found: dict[str, Any]) -> str:
    """All figures as a Markdown table, with the reasons for those that are missing."""
    from marco_search.evaluation import report

    if "peers_skipped" in found:
        return f"The other projects were left out: {found['peers_skipped']}"
    rows = []
    for name, title in TITLES.items():
        if f"{name}_skipped" in found:
            rows.append([title, f"did not run: {found[f'{name}_skipped']}"])
            continue
        rows.append([title, *(f"{found[f'{name}_{column}']:.4g}" for column in COLUMNS)])
        if found[f"{name}_refused_error"]:
            rows[-1][-1] = "none: the search ends"
    return report.table(["", *COLUMNS.values()], rows)


# -- The peers' side --------------------------------------------------------------------


def its_hub(task: Task, question: str) -> int:
    """Self-consistency, as the standalone example of its README."""
    from its_hub import OpenAICompatibleLanguageModel, SelfConsistency

    url = f"{task.url}/v1"
    model = OpenAICompatibleLanguageModel(url, "none", "simulated", system_prompt=task.system)
    try:
        found = SelfConsistency().infer(model, question, task.budget, return_response_only=False)
    finally:
        asyncio.run(model.close())
    return len(found.responses)


def treequest(task: Task, question: str) -> int:
    """AB-MCTS-A over ask_batch and tell, as its README has it.

    It brings no client: each batch goes to OpenAI's, one thread per generation. A node is an
    answer, its children are answers to the question with that one shown. A generation that
    fails is not reported to it.
    """
    import openai
    import treequest as peer

    client, random = openai.OpenAI(), Random(question)

    def generate(parent: str | None) -> tuple[str, float]:
        improve = f"\n\nAn earlier answer:\n{parent}\n\nImprove it." if parent else ""
        return _chat(client, task.system, question + improve), random.random()

    algorithm = peer.ABMCTSA()
    tree = algorithm.init_tree()
    with ThreadPoolExecutor(task.width) as pool:
        for _ in range(task.budget // task.width):
            tree, trials = algorithm.ask_batch(tree, task.width, ["answer"])
            made = [(trial, pool.submit(generate, trial.parent_state)) for trial in trials]
            for trial, answer in made:
                if not answer.exception():
                    tree = algorithm.tell(tree, trial.trial_id, answer.result())
    return len(algorithm.get_state_score_pairs(tree))


def _chat(client: Any, system: str, question: str, **more: Any) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    answer = client.chat.completions.create(**{"model": "simulated", "messages": messages} | more)
    return answer.choices[0].message.content or ""


def llm_reasoners(task: Task, question: str) -> int:
    """MCTS over the lines of a thought, with its own OpenAI model and without its pause of 3 s.

    `reasoners` imports torch and transformers for annotations only, and `reasoners.lm` imports
    every backend there is: empty modules stand in, and only the OpenAI backend is loaded. A
    state is the lines so far, with two candidates for the next one and random rewards.
    """
    stand_in = ModuleType("transformers")
    stand_in.StoppingCriteriaList = object  # type: ignore[attr-defined]
    sys.modules |= {"torch": ModuleType("torch"), "transformers": stand_in}
    import numpy
    import reasoners
    from reasoners.algorithm import MCTS

    backends = ModuleType("reasoners.lm")
    backends.__path__ = [str(Path(reasoners.__path__[0]) / "lm")]
    sys.modules["reasoners.lm"] = backends
    openai_model = importlib.import_module("reasoners.lm.openai_model")
    # A name of the GPT-4 family: others are sent as plain completions.
    model = openai_model.OpenAIModel(model="gpt-4-simulated", temperature=1.0)
    prompt, random = f"{task.system}\n\n{question}\n<Thought>\n", Random(question)
    steps, kept = 9, 0

    def lines_after(state: tuple[str, ...]) -> list[str]:
        nonlocal kept
        text = prompt + "".join(f"{line}\n" for line in state)
        found = model.generate(text, num_return_sequences=2, stop="\n", rate_limit_per_min=None)
        kept += len(found.text)
        return list(found.text)

    world = SimpleNamespace(
        update_example=lambda *_, **__: None,
        init_state=tuple,
        step=lambda state, action: ((*state, action), {}),
        is_terminal=lambda state: len(state) >= steps,
    )
    rewards = SimpleNamespace(
        update_example=lambda *_, **__: None,
        get_actions=lines_after,
        fast_reward=lambda *_: (random.random(), {}),
        reward=lambda *_, **__: (random.random(), {}),
    )
    # The rules of its own example for word problems (RAP on GSM8K).
    rules = {"cum_reward": numpy.mean, "calc_q": max, "w_exp": 1.0, "disable_tqdm": True}
    algorithm = MCTS(n_iters=task.budget, depth_limit=steps, **rules)
    reasoners.Reasoner(world, rewards, algorithm)(question)
    return kept


def optillm(task: Task) -> Outcome:
    """Its proxy with the approach mcts, through OpenAI's client, as its README has it.

    One simulation makes 11 completions. The proxy is one process; the time is that process's.
    """
    import openai

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = "import sys; from optillm import main; sys.exit(main())"
    options = ["--base-url", f"{task.url}/v1", "--port", str(port), "--log", "error"]
    simulations, errors = max(1, round(task.budget / 11)), []
    proxy = subprocess.Popen([sys.executable, "-c", code, *options], stdout=subprocess.DEVNULL)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", timeout=600, max_retries=0)

    def ask(question: str) -> None:
        more = {"model": "mcts-simulated", "extra_body": {"mcts_simulations": simulations}}
        try:
            _chat(client, task.system, question, **more)
        except openai.OpenAIError as error:
            errors.append(f"{type(error).__name__}: {error}")

    try:
        health = f"http://127.0.0.1:{port}/health"
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(health, timeout=10):
                break
            time.sleep(0.2)
        else:
            raise ValueError(f"no answer from {health}")
        with ThreadPoolExecutor(len(task.questions)) as pool:
            before, began = _cpu_s(proxy.pid), time.monotonic()
            list(pool.map(ask, task.questions))
            seconds, cpu_s = time.monotonic() - began, _cpu_s(proxy.pid) - before
    finally:
        proxy.kill()
        proxy.wait()
    kept = (len(task.questions) - len(errors)) * simulations * 11
    return Outcome(seconds, cpu_s, kept, errors)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def at_once(
    work: Callable[..., Any], items: Sequence[Any], prepare: Callable[[], object] = tuple
) -> tuple[list[Any], float]:
    """Each item in a forked process of its own, begun when all are prepared; and the seconds."""
    fork, count = multiprocessing.get_context("fork"), len(items)
    gc.collect()
    gc.freeze()  # as the worker does before it forks: else each process copies the whole heap
    with fork.Pool(count, _ready, (prepare, fork.Barrier(count))) as pool:
        gc.unfreeze()
        pool.map(abs, range(count), 1)  # done when all have passed the barrier
        began = time.monotonic()
        return pool.map(work, items, 1), time.monotonic() - began


def _ready(prepare: Callable[[], object], everyone: Any) -> None:
    prepare()
    everyone.wait(300)


def each_in_a_process(search: Callable[[Task, str], int], task: Task) -> Outcome:
    """Run the search for all questions at once, as ours. It returns the completions it kept."""
    found, seconds = at_once(partial(_one, search, task), task.questions)
    kept, cpu_s, errors = zip(*found, strict=True)
    return Outcome(seconds, sum(cpu_s), sum(kept), [error for error in errors if error])


def _one(search: Callable[[Task, str], int], task: Task, question: str) -> tuple[int, float, str]:
    kept, error, began = 0, "", time.process_time()
    try:
        kept = search(task, question)
    except Exception as raised:  # anything that a peer raises ends that one search
        error = f"{type(raised).__name__}: {raised}"
    return kept, time.process_time() - began, error


PEERS: dict[str, Callable[[Task], Outcome]] = {
    "its_hub": partial(each_in_a_process, its_hub),
    "treequest": partial(each_in_a_process, treequest),
    "optillm": optillm,
    "llm_reasoners": partial(each_in_a_process, llm_reasoners),
}

if __name__ == "__main__":
    outcome = PEERS[sys.argv[1]](Task(**json.loads(sys.argv[2])))
    print("\n" + json.dumps(asdict(outcome)))
