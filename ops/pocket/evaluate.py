"""Measures a checkpoint on the held-out sets: `python -m ops.pocket.evaluate FOLDER`.

Prints one JSON object a held-out set: greedy, sampled, majority of k, pass at k, best of k by mean
confidence, the AUROC of the confidence, forced reflection, tokens per answer; with n and 95 %
Wilson intervals. Samples are drawn at temperature 1.

With --reference it writes FOLDER/reference.json instead. That has, for a dozen prompts, their ids,
the greedy continuation of transformers in fp32, and the log-probs of the chosen and the five
best tokens at each position: any other decoder of the same weights can be checked against it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from marco_search.evaluation.statistics import auroc, wilson
from marco_search.pocket import held_out
from ops.pocket.decoder import TOP, Completion, Decoder
from ops.pocket.problems import TEXTS, Language
from ops.pocket.samples import is_held_out
from ops.pocket.solutions import REFLECTION
from ops.pocket.texts import GIFT_PROMPTS, HOBBIES, SUM_PROMPTS, gift_output

OPEN_ENDED, TRANSLATION = "open_ended", "heldout_translation"
SETS = ("heldout_en", "heldout_zh", "heldout_range_en", "heldout_range_zh", TRANSLATION, OPEN_ENDED)
SEED = 1  # of the samples
NEW_TOKENS = 32  # of a reference
LANGUAGES: tuple[Language, Language] = ("en", "zh")
Rows = Sequence[dict[str, Any]]


def output_of(text: str) -> str:
    """The Output part; empty if it is missing or not closed."""
    found = re.search(r"<Output>\n(.*)\n</Output>", text, re.DOTALL)
    return found[1] if found else ""


def answer_of(completion: Completion) -> int | None:
    """The last integer of the Output part."""
    numbers = re.findall(r"\d+", output_of(completion.text))
    return int(numbers[-1]) if numbers else None


def evaluate_reasoning(decoder: Decoder, rows: Rows, samples: int, seed: int) -> dict[str, Any]:
    """All figures for one held-out set of word problems."""
    prompts = [decoder.prompt(row["question"]) for row in rows]
    truth = [row["answer"] for row in rows]
    greedy = decoder.complete(prompts, temperature=0)
    greedy_right = _right(greedy, truth)
    counts = [len(row["ops"]) for row in rows]
    solved = Counter(n for n, right in zip(counts, greedy_right, strict=True) if right)
    drawn = decoder.complete([p for p in prompts for _ in range(samples)], 1, seed)
    flat = _right(drawn, [value for value in truth for _ in range(samples)])
    groups = [drawn[i : i + samples] for i in range(0, len(drawn), samples)]
    right = [flat[i : i + samples] for i in range(0, len(flat), samples)]
    values = [c.mean_confidence for c in drawn]
    pairs = list(zip(values, flat, strict=True))
    within = [
        auroc([c.mean_confidence for c in group], flags)
        for group, flags in zip(groups, right, strict=True)
    ]
    best = [max(range(samples), key=lambda i: group[i].mean_confidence) for group in groups]
    return {
        "n": len(rows),
        "k": samples,
        "greedy": _share(greedy_right),
        "greedy_by_operations": {
            n: f"{solved[n]}/{total}" for n, total in sorted(Counter(counts).items())
        },
        "tokens_per_greedy_answer": _mean([len(c.ids) for c in greedy]),
        "forced_reflection": _share(_right(_reflected(decoder, rows, greedy), truth)),
        "sampled_mean": _mean(flat),
        "majority": _share([_majority(g) == t for g, t in zip(groups, truth, strict=True)]),
        "pass": _share([any(flags) for flags in right]),
        "best_by_confidence": _share([flags[i] for flags, i in zip(right, best, strict=True)]),
        "auroc_pooled": round(auroc(values, flat) or 0.0, 4),
        "auroc_within_problem": _mean([value for value in within if value is not None]),
        "confidence_right": _mean([value for value, flag in pairs if flag]),
        "confidence_wrong": _mean([value for value, flag in pairs if not flag]),
    }


def evaluate_translation(decoder: Decoder, rows: Rows) -> dict[str, Any]:
    """Greedy translations that equal one of the accepted ones, letter for letter."""
    done = decoder.complete([decoder.prompt(row["question"]) for row in rows], temperature=0)
    right = [output_of(c.text) in row["expected"] for c, row in zip(done, rows, strict=True)]
    return {"n": len(rows), "exact": _share(right)}


def evaluate_open_ended(
    decoder: Decoder, samples: int, temperature: float, seed: int
) -> dict[str, Any]:
    """Gifts for known hobbies, and pairs of numbers for sums held out from training.

    A gift is acceptable if training names it for that hobby; a pair, if it adds up.
    """
    gifts: list[_Task] = []
    for hobby, language in [(h, lang) for h in HOBBIES for lang in LANGUAGES]:
        name, known = hobby[language]
        outputs = frozenset(gift_output(gift, language) for gift in known)
        gifts.append((GIFT_PROMPTS[language].format(hobby=name), outputs.__contains__))
    sums: list[_Task] = [
        (SUM_PROMPTS[language].format(total=total), _adds_up_to(total))
        for total in range(10, 200)
        for language in LANGUAGES
    ]
    held = [task for task in sums if is_held_out(task[0])]
    return {
        "temperature": temperature,
        "gifts": _acceptable(decoder, gifts, samples, temperature, seed),
        "held_out_sums": _acceptable(decoder, held, samples, temperature, seed),
    }


_Task = tuple[str, Callable[[str], bool]]
"""A prompt, and whether an output is acceptable."""


def _adds_up_to(total: int) -> Callable[[str], bool]:
    def check(output: str) -> bool:
        numbers = [int(number) for number in re.findall(r"\d+", output)]
        return len(numbers) == 2 and sum(numbers) == total

    return check


def _acceptable(
    decoder: Decoder, tasks: list[_Task], samples: int, temperature: float, seed: int
) -> dict[str, Any]:
    prompts = [decoder.prompt(prompt) for prompt, _ in tasks for _ in range(samples)]
    drawn = decoder.complete(prompts, temperature, seed)
    good = distinct = best = 0
    for i, (_, acceptable) in enumerate(tasks):
        group = drawn[i * samples : (i + 1) * samples]
        outputs = [text for c in group if acceptable(text := output_of(c.text))]
        good, distinct = good + len(outputs), distinct + len(set(outputs))
        best += output_of(max(group, key=lambda c: c.mean_confidence).text) in outputs
    return {
        "prompts": len(tasks),
        "k": samples,
        "acceptable": round(good / len(prompts), 4),
        "distinct_acceptable_per_prompt": round(distinct / len(tasks), 2),
        "most_confident_acceptable": f"{best}/{len(tasks)}",
    }


def _right(completions: Sequence[Completion], truth: Sequence[int]) -> list[bool]:
    return [answer_of(c) == value for c, value in zip(completions, truth, strict=True)]


def _majority(group: Sequence[Completion]) -> int | None:
    """The most frequent answer, the earlier one on a tie."""
    votes = Counter(answer for c in group if (answer := answer_of(c)) is not None)
    return votes.most_common(1)[0][0] if votes else None


def _reflected(decoder: Decoder, rows: Rows, greedy: Sequence[Completion]) -> list[Completion]:
    """The greedy thought, kept open with the phrase, and decoded on greedily."""
    prompts = []
    for row, completion in zip(rows, greedy, strict=True):
        thought = completion.text.split("\n</Thought>")[0].split(f"\n{REFLECTION}")[0]
        prompts.append(decoder.prompt(row["question"], f"{thought}\n{REFLECTION}\n"))
    return decoder.complete(prompts, temperature=0)


def _share(flags: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(flags), len(flags))
    return {"share": _mean(flags), "right": sum(flags), "interval": [round(low, 3), round(high, 3)]}


def _mean(values: Sequence[float]) -> float:
    return round(fmean(values), 4) if values else float("nan")


def reference_prompts() -> Iterator[tuple[str, str, str]]:
    """(name, user turn, thought so far) of each prompt."""
    for name, source, first in TEXTS["reference"]:
        user = source if isinstance(source, str) else held_out(source[0])[source[1]]["question"]
        yield name, user, f"{first}\n{REFLECTION}\n" if first else ""


def reference(decoder: Decoder, name: str, user: str, thought: str) -> dict[str, Any]:
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
        records = [reference(decoder, *prompt) for prompt in reference_prompts()]
        text = json.dumps(records, ensure_ascii=False, separators=(",", ":"))
        text = text.replace('},{"name"', '},\n{"name"')
        (options.folder / "reference.json").write_text(text + "\n")
        return
    for name in options.sets:
        if name == OPEN_ENDED:
            found = [evaluate_open_ended(decoder, k, heat, SEED) for heat in (1.0, 0.7)]
        elif name == TRANSLATION:
            found = [evaluate_translation(decoder, held_out(name)[: options.count])]
        else:
            found = [evaluate_reasoning(decoder, held_out(name)[: options.count], k, SEED)]
        for figures in found:
            print(json.dumps({"set": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
