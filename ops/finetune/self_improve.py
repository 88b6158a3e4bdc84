"""The loop, measured: search, learn what was found, search again: `make self-improve`.

    python -m ops.finetune.self_improve --minutes 9      one part; exits with 75 until all is done

A round searches training problems with the default search, makes a data set of the trees whose
answer is right (`marco dataset from-traces`), fine-tunes the model on it, and evaluates greedy
decoding and the default search on problems that training never had. The controls learn as many
samples that no tree is needed for. docs/learning.md says why the design is as it is.

Everything lies under MARCO_HOME/learning/SEED. What is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any, get_args
from uuid import UUID

from pydantic import SecretStr

from marco_search import pocket, settings
from marco_search.evaluation import report
from marco_search.evaluation.data_sets import Problem
from marco_search.evaluation.grading import Grader, Point, difference, point
from marco_search.evaluation.run import Recipe
from marco_search.evaluation.statistics import points, rounded
from marco_search.evaluation.traces import read
from marco_search.jobs import SearchOptions
from marco_search.runtime import open_runtime
from marco_search.settings import Settings
from marco_search.store.db import Database
from marco_search.store.queue import recovery, scheduling
from ops.bench.harness import WORKER, scratch_services
from ops.bench.paper_table import make
from ops.finetune.config import STOPPED, Config
from ops.finetune.run import TrainingStopped, finetune
from ops.plots import accuracy_over_tokens
from ops.pocket import samples
from ops.pocket.problems import HELD_OUT_STARTS, Language, draw_problem
from ops.pocket.problems import Problem as WordProblem
from producer import Producer
from worker.runner import Runner
from worker.shutdown import Shutdown

DESIGN = "dev14"
"""Of the problems that the design was chosen on."""
FIRST = "5eab6c47"
"""Of the problems of the first design's report; those that were searched are searched again."""
SEED = "375f05b3"
"""Of the held-out problems of the report, drawn at random once the design was fixed."""
PROBLEMS, SAMPLES, EVALUATED = 1250, 2400, 600
"""Searched of each language and round; learned of both in a round; evaluated of each language."""
LOOKED_AT = 300
"""Problems of each language that the design was chosen on."""
SEARCH_SEED, THREADS = 20_140, 24
TRAINER = {"num_train_epochs": 1, "learning_rate": 5e-4, "per_device_train_batch_size": 16}
"""Instead of what CONFIG has."""
INTERPOLATE = 0.25
"""How far the weights go from the parent's to the trained."""
SEARCH_AFTER = {"reference": -0.6, "stop": 0.7}
"""Of the search with a model that has learned: where its values lie (docs/learning.md)."""
LANGUAGES: tuple[Language, ...] = get_args(Language)
GROUPS: dict[str, tuple[Language, ...]] = {"en": ("en",), "zh": ("zh",), "pooled": LANGUAGES}
CONFIG = Path(__file__).with_name("pocket.toml")


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to make samples."""

    options: Mapping[str, Any]  #: of the searches
    words: Sequence[str]  #: for `marco dataset from-traces`
    problems: int = PROBLEMS  #: of each language; more where fewer answers are right
    rounds: int = 1


ARMS = {
    "search": Arm({}, ("--reflection", "redo"), rounds=2),
    "greedy": Arm({"strategy": "cot"}, (), problems=1850),
    "vote": Arm(
        {"strategy": "vote", "rollouts": 4, "early_stop": False},
        ("--reflection", "kept", "--path", "any"),
        problems=1350,
    ),
}
"""What is measured, and its controls: greedy answers, and one right sample of four."""
ROUNDS = sorted(
    ((name, number) for name, arm in ARMS.items() for number in range(1, arm.rounds + 1)),
    key=itemgetter(1),
)
"""(Arm, round) in the order in which they are done."""


def training_problems(language: Language, count: int, seed: str) -> list[WordProblem]:
    """Distinct problems as training has them; a larger count goes on from a smaller one."""
    rng, found = Random(f"{seed}/train/{language}"), dict[str, WordProblem]()
    while len(found) < count:
        problem = draw_problem(rng, language)
        if problem.start not in HELD_OUT_STARTS and not samples.is_held_out(problem.question):
            found.setdefault(problem.question, problem)
    return list(found.values())


def evaluated(seed: str, language: Language, count: int) -> list[Problem]:
    """Held-out problems, none of which a design was chosen or reported on."""
    former = samples.held_out_problems(
        language, LOOKED_AT, f"{DESIGN}/{language}", without=samples.shipped()
    ) + samples.draw(FIRST, "normal", language, LOOKED_AT + EVALUATED)
    seen = {problem.question for problem in former}
    drawn = samples.draw(seed, "normal", language, count + len(former))
    return samples.as_problems([p for p in drawn if p.question not in seen][:count])


@dataclass(frozen=True)
class Loop:
    """One run of all arms. `small` divides all counts, for a trial."""

    home: Path
    seed: str
    loaded: Settings
    problems: Mapping[Language, list[Problem]]  #: what is evaluated
    small: int = 1

    def step(self, arm: str, number: int) -> Path:
        """The folder of an arm's round; 0 is the model that all begin with."""
        return self.home / (f"{arm}-{number}" if number else "before")

    def model(self, arm: str, number: int) -> Path:
        """The model after a round."""
        return self.step(arm, number) / "trained" / "model" if number else pocket.MODEL_DIR

    def traces(self, arm: str, number: int, language: Language) -> Path:
        """Those of a model's evaluation."""
        return self.step(arm, number) / f"{language}.jsonl"

    def measured(self, arm: str, number: int) -> bool:
        """Whether a model's evaluation is complete."""
        files = {lang: self.traces(arm, number, lang) for lang in self.problems}
        return all(
            file.exists() and {p.key for p in self.problems[lang]} <= {t.key for t in read(file)}
            for lang, file in files.items()
        )

    def points(self, arm: str, number: int, *languages: Language) -> dict[str, Point]:
        """A model's accuracy and tokens: greedy, and by search where that was run."""
        problems = [p for language in languages for p in self.problems[language]]
        files = (self.traces(arm, number, language) for language in languages)
        found = {t.key: t for file in files for t in read(file)}
        traces, grader = [found[p.key] for p in problems], Grader(problems)
        longest = max(len(t.rollouts) for t in traces)
        searched = {"search": point(traces, grader, longest)} if longest > 1 else {}
        return {"greedy": point(traces, grader, 1)} | searched

    def go(self, ends: float) -> None:
        """Do what is missing. Raises KeyboardInterrupt, TrainingStopped at the end of its time."""
        ring_at(ends)
        self.evaluate("search", 0)
        for name, number in ROUNDS:
            if not self.model(name, number).exists():
                if not (data := self.step(name, number) / "data").exists():
                    self.search(ARMS[name], number, self.model(name, number - 1), data)
                ring_at(None)  # a training stops by itself, with a checkpoint
                seconds = max(1.0, ends - time.monotonic())
                finetune(self.training(name, number), max_seconds=seconds, evaluate="none")
                ring_at(ends)
            self.evaluate(name, number)

    def training(self, arm: str, number: int) -> Config:
        """The fine-tuning of an arm's round."""
        folder = self.step(arm, number)
        changes = {"model": self.model(arm, number - 1), "data": [folder / "data"]}
        changes |= {"out": folder / "trained", "samples": SAMPLES // self.small}
        changes |= {f"trainer.{key}": value for key, value in TRAINER.items()}
        changes |= {"name": f"pocket-{folder.name}", "interpolate": INTERPOLATE}
        return Config.read(CONFIG, changes)

    def search(self, arm: Arm, number: int, model: Path, data: Path) -> None:
        """Search training problems through the queue's tables, and make a data set of the trees."""
        data.parent.mkdir(parents=True, exist_ok=True)
        with scratch_services(self.home / "services", keep=True) as services:
            url, redis = services.urls.database_url, services.urls.redis_url
            urls = {"database_url": SecretStr(url), "redis_url": SecretStr(redis)}
            loaded = self.loaded.model_copy(update={"model": model, **urls})
            with (
                Producer(settings=loaded) as producer,
                services.database(2 * THREADS) as database,
            ):
                batch = self.submit(producer, arm, number, data.with_name("batch"))
                while left := producer.batch(batch).left:
                    note(f"{data.parent.name}: {left} searches left")
                    answer(loaded, database, left)
            command = [str(Path(sys.executable).with_name("marco")), "dataset", "from-traces"]
            command += [str(data), "--batch", str(batch), "--verified", "--answer", "expected"]
            command += ["--min-share", "0", *arm.words]
            environ = os.environ | {"DATABASE_URL": url, "MARCO_MODEL": str(model)}
            subprocess.run(command, env=environ, check=True)

    def submit(self, producer: Producer, arm: Arm, number: int, file: Path) -> UUID:
        """The batch of a round's jobs, which `file` names once all are stored."""
        if not file.exists():
            count, name = arm.problems // self.small, f"{FIRST}/{number}"
            problems = [p for lang in LANGUAGES for p in training_problems(lang, count, name)]
            jobs = [{"question": p.question, "expected": str(p.answer)} for p in problems]
            lines = (json.dumps({"kind": "reasoning", **job}).encode() for job in jobs)
            options = {"profile": "pocket", "seed": SEARCH_SEED, **arm.options}
            file.write_text(str(producer.submit_batch(lines, options=options, waits=True).id))
        return UUID(file.read_text())

    def evaluate(self, arm: str, number: int) -> None:
        """Answer the held-out problems: by search, whose first rollout is greedy, or greedily."""
        how: dict[str, Any] = {"strategy": "auto" if arm == "search" else "cot"}
        if arm == "search" and number:
            how["overrides"] = SEARCH_AFTER
        options = SearchOptions(**how, seed=SEARCH_SEED, profile="pocket")
        loaded = self.loaded.model_copy(update={"model": self.model(arm, number)})
        with closing(open_runtime(loaded)) as runtime:
            for language in LANGUAGES:
                file = self.traces(arm, number, language)
                make(Recipe(options=options), self.problems[language], runtime, file)

    def to_json(self) -> dict[str, Any]:
        """Rounds that are measured to language ("pooled": both) to figures, in shares of 1."""
        found: dict[str, Any] = {"seed": self.seed, "samples": SAMPLES // self.small, "rounds": {}}
        for arm, number in ROUNDS:
            if arm == "search" and self.measured(arm, number):
                found["rounds"][str(number)] = {
                    name: self.figures(number, languages) for name, languages in GROUPS.items()
                }
        return found

    def figures(self, number: int, languages: Sequence[Language]) -> dict[str, Any]:
        """A round's models beside that before the first, and the controls of the round."""
        before, after = (self.points("search", n, *languages) for n in (0, number))
        found: dict[str, Any] = {}
        for way in ("greedy", "search"):
            found[f"{way}_before"] = before[way].accuracy
            found[f"{way}_after"] = after[way].accuracy
            found[f"{way}_tokens_before"] = before[way].tokens_per_problem
            found[f"{way}_tokens_after"] = after[way].tokens_per_problem
        gain = difference(after["greedy"], before["greedy"])
        found |= {name: gain[name] for name in ("n", "difference", "low", "high")}
        found["search"] = difference(after["search"], before["search"])
        found["controls"] = {}
        for name, arm in ARMS.items():
            if name != "search" and number <= arm.rounds and self.measured(name, number):
                control = self.points(name, number, *languages)["greedy"]
                found["controls"][name] = {
                    "greedy_after": control.accuracy,
                    "tokens": control.tokens_per_problem,
                    "gain_over_it": difference(after["greedy"], control),
                }
        made: dict[str, Any] = rounded(found)
        return made

    def plot(self, stem: Path) -> list[Path]:
        """Accuracy over tokens of all models, a panel a language."""
        shown = {("search", 0): "before"}
        for arm, number in ROUNDS:
            if self.measured(arm, number):
                label = f"round {number}" if arm == "search" else f"control: {arm}"
                shown[arm, number] = label
        panels: dict[str, dict[str, list[Point]]] = {
            language: {
                f"{label}, {way}": [at]
                for (arm, number), label in shown.items()
                for way, at in self.points(arm, number, language).items()
            }
            for language in LANGUAGES
        }
        return accuracy_over_tokens(panels, stem)


def answer(loaded: Settings, database: Database, most: int) -> None:
    """Run so many queued jobs at most, THREADS at once on one engine. Ctrl-C releases them."""
    shutdown = Shutdown()
    with database.transaction() as conn:  # what a part left when it ended, or was killed
        recovery.reclaim(conn, quarantine_after=loaded.quarantine_after)
        scheduling.log_published(conn, scheduling.due(conn))
    with closing(open_runtime(loaded)) as runtime, ThreadPoolExecutor(THREADS) as pool:
        # A search that was just stored may still call this, while the others are under way.
        runtime.abort = lambda: None  # type: ignore[method-assign]
        runners = [
            Runner(loaded, database, lambda: runtime, WORKER, shutdown=shutdown)
            for _ in range(THREADS)
        ]

        def work(runner: Runner) -> None:
            for _ in range(0, most, THREADS):
                runner.run_next()

        try:
            for working in [pool.submit(work, runner) for runner in runners]:
                working.result()
        except KeyboardInterrupt:
            shutdown.request(within_s=20)
            raise


def ring_at(ends: float | None) -> None:
    """Have SIGALRM do what Ctrl-C does at this time.monotonic(); None: never."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, ends - time.monotonic()) if ends else 0)


def table(found: Mapping[str, Any]) -> str:
    """The figures of a report in Markdown; accuracies and differences in percent."""
    controls = [name for name in ARMS if name != "search"]
    head = ["round", "", "n", "greedy, tokens", "gain", "search, tokens", "gain"]
    rows = []
    for number, groups in found["rounds"].items():
        for name, at in groups.items():
            cells = [number, name, str(at["n"])]
            for way, gain in (("greedy", at), ("search", at["search"])):
                before, after = (100 * at[f"{way}_{when}"] for when in ("before", "after"))
                spent = [at[f"{way}_tokens_{when}"] for when in ("before", "after")]
                cells += [
                    f"{before:.1f} to {after:.1f}, {spent[0]:.0f} to {spent[1]:.0f}",
                    points(gain),
                ]
            beside = at["controls"]
            cells += [points(beside[c]["gain_over_it"]) if c in beside else "" for c in controls]
            rows.append(cells)
    return report.table([*head, *(f"gain over {name}" for name in controls)], rows)


def note(text: str) -> None:
    """Say on standard error how far it is."""
    print(text, file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", default=SEED, help="of the problems")
    parser.add_argument("--minutes", type=float, help="stop after so many, to go on later")
    parser.add_argument("--small", type=int, default=1, help="divide all counts by this: a trial")
    parser.add_argument("--report", action="store_true", help="run nothing")
    asked = parser.parse_args(words)
    loaded = settings.load()
    home = (
        loaded.home.absolute() / "learning" / f"{asked.seed}{f'-{asked.small}' * (asked.small > 1)}"
    )
    problems = {lang: evaluated(asked.seed, lang, EVALUATED // asked.small) for lang in LANGUAGES}
    loop = Loop(home, asked.seed, loaded, problems, asked.small)
    ends = time.monotonic() + 60 * (asked.minutes or 1e6)
    try:
        if not asked.report:
            loop.go(ends)
    except (KeyboardInterrupt, TrainingStopped):
        note(f"{home}: not done yet; the same command goes on")
        return STOPPED
    found = loop.to_json()
    (loaded.home / "bench").mkdir(parents=True, exist_ok=True)
    (loaded.home / "bench" / "learning.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    print(*loop.plot(loaded.home / "bench" / "learning"), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
