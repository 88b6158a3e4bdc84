"""Writes reference.json of a checkpoint: `python -m ops.pocket.reference FOLDER`.

That has, for a dozen prompts, their ids, the greedy continuation of transformers in fp32, and the
log-probs of the chosen and the five best tokens at each position: any other decoder of the same
weights can be checked against it. How well a checkpoint answers, `marco eval` measures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from marco_search.pocket import held_out
from ops.pocket.problems import REFLECTION, TEXTS
from ops.pocket.tokenizer import END_OF_TURN, user_prompt

NEW_TOKENS, TOP = 32, 5


def reference(
    model: Any, tokenizer: Tokenizer, name: str, source: Any, first: str
) -> dict[str, Any]:
    """One prompt: name, prompt, ids, generated, text, logprobs, top ([id, logprob] x 5).

    `source` is a user turn, or a held-out set and a row; `first` an attempt to reflect on.
    """
    user = source if isinstance(source, str) else held_out(source[0])[source[1]]["question"]
    thought = f"{first}\n{REFLECTION}\n" if first else ""
    ids = tokenizer.encode(f"{user_prompt(user)}<Thought>\n{thought}").ids
    generated, stop = list[int](), tokenizer.token_to_id(END_OF_TURN)
    top: list[list[list[float]]] = []
    while len(generated) < NEW_TOKENS and stop not in generated:
        with torch.inference_mode():  # without a cache: nothing to go wrong
            logits = model(input_ids=torch.tensor([ids + generated])).logits[0, -1]
        best = logits.float().log_softmax(-1).topk(TOP)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top.append([[token, round(value, 6)] for token, value in pairs])
        generated.append(int(best.indices[0]))
    return {
        "name": name,
        "prompt": tokenizer.decode(ids, skip_special_tokens=False),
        "ids": ids,
        "generated": generated,
        "text": tokenizer.decode(generated, skip_special_tokens=False),
        "logprobs": [best[0][1] for best in top],
        "top": top,
    }


def main(folder: Path) -> None:
    """Write FOLDER/reference.json."""
    from transformers import Qwen2ForCausalLM

    torch.set_num_threads(1)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    records = [reference(model, tokenizer, *entry) for entry in TEXTS["reference"]]
    text = json.dumps(records, ensure_ascii=False, separators=(",", ":"))
    (folder / "reference.json").write_text(text.replace('},{"name"', '},\n{"name"') + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
