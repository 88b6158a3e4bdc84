"""llm-reasoners: MCTS over lines of a thought, with its own OpenAI model.

`reasoners` imports torch and transformers for type annotations and its evaluator; stand_ins/ has
what the import needs. `reasoners.lm` imports every backend there is, so only the file of the
OpenAI one is loaded. Its model sends a chat where the model's name is of the GPT-4 family. Its
pause of 3 s before each request is switched off, by its own argument.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from random import Random
from types import ModuleType

sys.path.insert(0, str(Path(__file__).with_name("stand_ins")))

import numpy
import reasoners
from reasoners.algorithm import MCTS

from ops.bench.peers import adapter

_Details = dict[str, object]
_STEPS = 9  # to the end of a thought: as many lines, of the same length, as ours have on average
_ACTIONS = 2  # at each step, as in our searches


def _openai_model() -> type:
    folder = Path(reasoners.__path__[0]) / "lm"
    package = ModuleType("reasoners.lm")
    package.__path__ = [str(folder)]
    sys.modules["reasoners.lm"] = package
    return importlib.import_module("reasoners.lm.openai_model").OpenAIModel  # type: ignore[no-any-return]


OpenAIModel = _openai_model()


class Lines(reasoners.WorldModel):  # type: ignore[misc]
    """A state is the lines so far."""

    def init_state(self) -> tuple[str, ...]:
        """None."""
        return ()

    def step(self, state: tuple[str, ...], action: str) -> tuple[tuple[str, ...], _Details]:
        """One more."""
        return (*state, action), {}

    def is_terminal(self, state: tuple[str, ...]) -> bool:
        """At the thought's end."""
        return len(state) >= _STEPS


class Config(reasoners.SearchConfig):  # type: ignore[misc]
    """Asks the model for the next line. Counts what it gets."""

    def __init__(self, task: adapter.Task, question: str) -> None:
        super().__init__()
        self._model = OpenAIModel(model="gpt-4-simulated", temperature=1.0)
        self._prompt = f"{task.system}\n\n{question}\n<Thought>\n"
        self._random = Random(question)
        self.kept = 0

    def get_actions(self, state: tuple[str, ...]) -> list[str]:
        """The next lines to choose from."""
        prompt = self._prompt + "".join(f"{line}\n" for line in state)
        lines = self._model.generate(
            prompt, num_return_sequences=_ACTIONS, stop="\n", rate_limit_per_min=None
        ).text
        self.kept += len(lines)
        return list(lines)

    def fast_reward(self, state: tuple[str, ...], action: str) -> tuple[float, _Details]:
        """Chat completions come without log-probs here: any number will do."""
        return self._random.random(), {}

    def reward(self, state: tuple[str, ...], action: str, **_: object) -> tuple[float, _Details]:
        """The same."""
        return self._random.random(), {}


def search(task: adapter.Task, question: str) -> int:
    """`budget` iterations, each a rollout to the end of a thought."""
    os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"] = "none", f"{task.url}/v1"
    config = Config(task, question)
    # The rules of its own example for word problems (RAP on GSM8K).
    rules = {"cum_reward": numpy.mean, "calc_q": max, "w_exp": 1.0, "disable_tqdm": True}
    algorithm = MCTS(n_iters=task.budget, depth_limit=_STEPS, **rules)
    reasoners.Reasoner(Lines(), config, algorithm)(question)
    return config.kept


if __name__ == "__main__":
    adapter.main(search)
