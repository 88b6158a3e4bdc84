"""its_hub: self-consistency, as its README's standalone example has it."""

from __future__ import annotations

import asyncio

from its_hub import OpenAICompatibleLanguageModel, SelfConsistency

from ops.bench.peers import adapter


def search(task: adapter.Task, question: str) -> int:
    """`budget` samples and a vote."""
    lm = OpenAICompatibleLanguageModel(
        endpoint=f"{task.url}/v1",
        api_key="none",
        model_name="simulated",
        system_prompt=task.system,
    )
    try:
        result = SelfConsistency().infer(lm, question, task.budget, return_response_only=False)
    finally:
        asyncio.run(lm.close())
    return len(result.responses)


if __name__ == "__main__":
    adapter.main(search)
