"""Measures a checkpoint on the held-out sets: `python -m ops.pocket.evaluate FOLDER`.

Prints one JSON object a held-out set: greedy, sampled, majority of k, pass at k, best of k by mean
confidence, the AUROC of the confidence, forced reflection, tokens per answer; with n and 95 %
Wilson intervals. Samples are drawn at temperature 1. transformers
does the forward pass, so that the figures do not rest on our engine.

With --reference it writes FOLDER/reference.json instead. That has, for a dozen prompts, their ids,
the greedy continuation of transformers in fp32, and the log-probs of the chosen and the five
best tokens at each position: any other decoder of the same weights can be checked against it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tokenizers import Tokenizer

from marco_search.evaluation.statistics import auroc, wilson
from marco_search.pocket import held_out
from ops.pocket.problems import TEXTS
from ops.pocket.samples import is_held_out
from ops.pocket.solutions import REFLECTION
from ops.pocket.texts import OPEN_ENDED, acceptable_gifts, adds_up_to
from ops.pocket.tokenizer import CONTEXT, END_OF_TURN, token_id, user_prompt

WORD_PROBLEMS = ("heldout_en", "heldout_zh", "heldout_range_en", "heldout_range_zh")
SETS = (*WORD_PROBLEMS, "heldout_translation", "open_ended")
SEED = 1  # of the samples
NEW_TOKENS = 32  # of a reference
TOP = 5
ROWS = 128  # prompts that are decoded together
Rows = Sequence[dict[str, Any]]


@dataclass
class Completion:
    """Generated ids (with the end of turn, if reached) and c_i of each token."""

    ids: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    text: str = ""  #: without special tokens; the tags stay

    @property
    def mean_confidence(self) -> float:
        """v = mean of c_i (Marco-o1, section 4)."""
        return sum(self.confidences) / max(1, len(self.confidences))

    @property
    def output(self) -> str:
        """The Output part; empty if it is missing or not closed."""
        found = re.search(r"<Output>\n(.*)\n</Output>", self.text, re.DOTALL)
        return found[1] if found else ""

    @property
    def answer(self) -> int | None:
        """The last integer of the Output part."""
        numbers = re.findall(r"\d+", self.output)
        return int(numbers[-1]) if numbers else None


class Decoder:
    """A Hugging Face folder, ready to decode batches on the CPU."""

    def __init__(self, folder: Path) -> None:
        from transformers import Qwen2ForCausalLM

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model: Any = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.stop = token_id(self.tokenizer, END_OF_TURN)

    def prompt(self, user: str, thought: str = "") -> list[int]:
        """Ids of a prompt that ends in an open thought, with `thought` already written."""
        ids: list[int] = self.tokenizer.encode(f"{user_prompt(user)}<Thought>\n{thought}").ids
        return ids

    def complete(
        self, prompts: Sequence[list[int]], temperature: float, seed: int = 0
    ) -> list[Completion]:
        """Completions in the order of the prompts. Temperature 0 is greedy.

        The confidence is always taken at temperature 1. `seed` is that of the whole call.
        """
        generator = torch.Generator().manual_seed(seed)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        done = [Completion() for _ in prompts]
        for begin in range(0, len(order), ROWS):
            part = order[begin : begin + ROWS]
            batch = [prompts[i] for i in part]
            with torch.inference_mode():
                self._complete(batch, [done[i] for i in part], temperature, generator)
        for completion in done:
            completion.text = self.tokenizer.decode(completion.ids, skip_special_tokens=True)
        return done

    def _complete(
        self,
        prompts: list[list[int]],
        alive: list[Completion],
        temperature: float,
        generator: torch.Generator,
    ) -> None:
        from transformers import DynamicCache

        longest = max(map(len, prompts))  # padding on the left: the last column is real
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        positions, cache = (mask.cumsum(1) - 1).clamp(min=0), DynamicCache(config=self.model.config)
        while True:
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
            logprobs = logits.float().log_softmax(-1)
            chosen = logprobs.argmax(-1)
            if temperature:
                weights = (logprobs / temperature).softmax(-1)
                chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
            # c_i: the chosen probability over the sum of the top five.
            top = logprobs.topk(TOP, -1).values.logsumexp(-1)
            own = logprobs.gather(1, chosen[:, None])[:, 0]
            confidences = (own - top).exp().clamp(max=1.0)
            for row, completion in enumerate(alive):
                completion.ids.append(int(chosen[row]))
                completion.confidences.append(float(confidences[row]))
            keep = (chosen != self.stop).nonzero()[:, 0]
            if len(keep) == 0 or mask.shape[1] + 1 >= CONTEXT:
                return
            if len(keep) < len(alive):
                cache.batch_select_indices(keep)
            alive = [alive[index] for index in keep.tolist()]
            ids, positions = chosen[keep, None], positions[keep, -1:] + 1
            mask = torch.cat([mask[keep], torch.ones(len(alive), 1, dtype=torch.long)], 1)


def evaluate_reasoning(decoder: Decoder, rows: Rows, samples: int) -> dict[str, Any]:
    """All figures for one held-out set of word problems."""
    prompts = [decoder.prompt(row["question"]) for row in rows]
    truth = [row["answer"] for row in rows]
    greedy = decoder.complete(prompts, temperature=0)
    greedy_right = _right(greedy, truth)
    counts = [len(row["ops"]) for row in rows]
    solved = Counter(n for n, right in zip(counts, greedy_right, strict=True) if right)
    reflecting = []
    for row, completion in zip(rows, greedy, strict=True):
        # The greedy thought, kept open with the phrase, and decoded on greedily.
        thought = completion.text.split("\n</Thought>")[0].split(f"\n{REFLECTION}")[0]
        reflecting.append(decoder.prompt(row["question"], f"{thought}\n{REFLECTION}\n"))
    reflected = decoder.complete(reflecting, temperature=0)
    drawn = decoder.complete([p for p in prompts for _ in range(samples)], 1, SEED)
    flat = _right(drawn, [value for value in truth for _ in range(samples)])
    values = [c.mean_confidence for c in drawn]
    majority, best, within = [], [], []
    for i, value in enumerate(truth):
        group = slice(i * samples, (i + 1) * samples)
        votes = Counter(c.answer for c in drawn[group] if c.answer is not None)
        # The most frequent answer, the earlier one on a tie.
        majority.append(bool(votes) and votes.most_common(1)[0][0] == value)
        scores, flags = values[group], flat[group]
        best.append(flags[scores.index(max(scores))])
        if (one := auroc(scores, flags)) is not None:
            within.append(one)
    return {
        "n": len(rows),
        "k": samples,
        "greedy": _share(greedy_right),
        "greedy_by_operations": {
            n: f"{solved[n]}/{total}" for n, total in sorted(Counter(counts).items())
        },
        "tokens_per_greedy_answer": _mean([len(c.ids) for c in greedy]),
        "forced_reflection": _share(_right(reflected, truth)),
        "sampled_mean": _mean(flat),
        "majority": _share(majority),
        "pass": _share([any(flat[i : i + samples]) for i in range(0, len(flat), samples)]),
        "best_by_confidence": _share(best),
        "auroc_pooled": round(auroc(values, flat) or 0.0, 4),
        "auroc_within_problem": _mean(within),
        "confidence_right": _mean([v for v, right in zip(values, flat, strict=True) if right]),
        "confidence_wrong": _mean([v for v, right in zip(values, flat, strict=True) if not right]),
    }


def evaluate_translation(decoder: Decoder, rows: Rows) -> dict[str, Any]:
    """Greedy translations that equal one of the accepted ones, letter for letter."""
    done = decoder.complete([decoder.prompt(row["question"]) for row in rows], temperature=0)
    right = [c.output in row["expected"] for c, row in zip(done, rows, strict=True)]
    return {"n": len(rows), "exact": _share(right)}


def evaluate_open_ended(decoder: Decoder, samples: int, temperature: float) -> dict[str, Any]:
    """Gifts for known hobbies, and pairs of numbers for sums held out from training.

    A gift is acceptable if training names it for that hobby; a pair, if it adds up.
    """
    sums: dict[str, Callable[[str], bool]] = {}
    for total in range(10, 200):
        for words in OPEN_ENDED.values():
            if is_held_out(prompt := words["sum"].format(total=total)):
                sums[prompt] = partial(adds_up_to, total)
    found: dict[str, Any] = {"temperature": temperature}
    for name, tasks in {"gifts": acceptable_gifts(), "held_out_sums": sums}.items():
        prompts = [decoder.prompt(prompt) for prompt in tasks for _ in range(samples)]
        drawn = decoder.complete(prompts, temperature, SEED)
        good = distinct = best = 0
        for i, acceptable in enumerate(tasks.values()):
            group = drawn[i * samples : (i + 1) * samples]
            right = [c.output for c in group if acceptable(c.output)]
            good, distinct = good + len(right), distinct + len(set(right))
            best += max(group, key=lambda c: c.mean_confidence).output in right
        found[name] = {
            "prompts": len(tasks),
            "k": samples,
            "acceptable": round(good / len(prompts), 4),
            "distinct_acceptable_per_prompt": round(distinct / len(tasks), 2),
            "most_confident_acceptable": f"{best}/{len(tasks)}",
        }
    return found


def _right(completions: Sequence[Completion], truth: Sequence[int]) -> list[bool]:
    return [c.answer == value for c, value in zip(completions, truth, strict=True)]


def _share(flags: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(flags), len(flags))
    return {"share": _mean(flags), "right": sum(flags), "interval": [round(low, 3), round(high, 3)]}


def _mean(values: Sequence[float]) -> float:
    return round(fmean(values), 4) if values else float("nan")


def reference(decoder: Decoder, name: str, source: Any, first: str) -> dict[str, Any]:
    """One prompt: name, prompt, ids, generated, text, logprobs, top ([id, logprob] x 5).

    `source` is a user turn, or a held-out set and a row; `first` an attempt to reflect on.
    """
    user = source if isinstance(source, str) else held_out(source[0])[source[1]]["question"]
    ids = decoder.prompt(user, f"{first}\n{REFLECTION}\n" if first else "")
    generated = list[int]()
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=250, help="problems a set")
    parser.add_argument("--samples", type=int, default=8, help="k")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=SETS)
    parser.add_argument("--reference", action="store_true", help="write reference.json only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    decoder, k = Decoder(options.folder), options.samples
    if options.reference:
        records = [reference(decoder, *entry) for entry in TEXTS["reference"]]
        text = json.dumps(records, ensure_ascii=False, separators=(",", ":"))
        text = text.replace('},{"name"', '},\n{"name"')
        (options.folder / "reference.json").write_text(text + "\n")
        return
    for name in options.sets:
        if name == "open_ended":
            found = [evaluate_open_ended(decoder, k, heat) for heat in (1.0, 0.7)]
        elif name in WORD_PROBLEMS:
            found = [evaluate_reasoning(decoder, held_out(name)[: options.count], k)]
        else:
            found = [evaluate_translation(decoder, held_out(name)[: options.count])]
        for figures in found:
            print(json.dumps({"set": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
