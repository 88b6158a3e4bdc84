"""Stores reference log-probs: `python -m ops.pocket.reference FOLDER`.

FOLDER/reference.json gets, for a dozen prompts, the prompt's ids, the greedy continuation of
transformers in fp32, and the log-probs of the chosen and the five best tokens at each position.
Any other decoder of the same weights can be checked against it without torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from marco_search.pocket import held_out
from ops.pocket.decoder import TOP, Decoder
from ops.pocket.problems import TEXTS
from ops.pocket.solutions import REFLECTION

NEW_TOKENS = 32


def reference_prompts() -> Iterator[tuple[str, str, str]]:
    """(name, user turn, thought so far) of each prompt."""
    for name, source, first in TEXTS["reference"]:
        user = source if isinstance(source, str) else held_out(source[0])[source[1]]["question"]
        yield name, user, f"{first}\n{REFLECTION}\n" if first else ""


def record(decoder: Decoder, name: str, user: str, thought: str) -> dict[str, Any]:
    """One prompt: name, prompt, ids, generated, text, logprobs, top ([id, logprob] x 5)."""
    ids, generated = decoder.prompt(user, thought), list[int]()
    top: list[list[list[float]]] = []
    while len(generated) < NEW_TOKENS and decoder.stop not in generated:
        with torch.inference_mode():  # without a cache: nothing to go wrong
            logits = decoder.model(input_ids=torch.tensor([ids + generated])).logits[0, -1]
        best = logits.float().log_softmax(-1).topk(TOP)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top.append([[token, round(value, 6)] for token, value in pairs])
        generated.append(int(best.indices[0]))
    return {
        "name": name,
        "prompt": decoder.tokenizer.decode(ids, skip_special_tokens=False),
        "ids": ids,
        "generated": generated,
        "text": decoder.tokenizer.decode(generated, skip_special_tokens=False),
        "logprobs": [best[0][1] for best in top],
        "top": top,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    opened = Decoder(folder)
    records = [record(opened, *prompt) for prompt in reference_prompts()]
    text = json.dumps(records, ensure_ascii=False, separators=(",", ":"))
    (folder / "reference.json").write_text(text.replace('},{"name"', '},\n{"name"') + "\n")
