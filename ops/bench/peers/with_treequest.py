"""treequest: AB-MCTS-A over ask_batch and tell, as its README has it.

It brings no client: each batch goes to OpenAI's, one thread per generation. A node is an answer,
its children are answers to the question with that one shown. A generation that fails is not told.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random

import treequest
from openai import OpenAI, OpenAIError

from ops.bench.peers import adapter


def search(task: adapter.Task, question: str) -> int:
    """`budget` generations, `width` at once."""
    client = OpenAI(base_url=f"{task.url}/v1", api_key="none")
    random = Random(question)

    def generate(parent: str | None) -> tuple[str, float]:
        again = f"\n\nAn earlier answer:\n{parent}\n\nImprove it." if parent else ""
        answer = client.chat.completions.create(
            model="simulated",
            messages=[
                {"role": "system", "content": task.system},
                {"role": "user", "content": question + again},
            ],
        )
        return answer.choices[0].message.content or "", random.random()

    algorithm = treequest.ABMCTSA()
    tree = algorithm.init_tree()
    with ThreadPoolExecutor(task.width) as pool:
        for _ in range(task.budget // task.width):
            tree, trials = algorithm.ask_batch(tree, task.width, ["answer"])
            out = [(trial, pool.submit(generate, trial.parent_state)) for trial in trials]
            for trial, answer in out:
                try:
                    tree = algorithm.tell(tree, trial.trial_id, answer.result())
                except OpenAIError:
                    continue
    return len(algorithm.get_state_score_pairs(tree))


if __name__ == "__main__":
    adapter.main(search)
