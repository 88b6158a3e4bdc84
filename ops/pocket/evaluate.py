"""Measures a checkpoint on the held-out sets: `python -m ops.pocket.evaluate FOLDER`.

Prints one JSON object a held-out set: greedy, sampled, majority of k, pass at k, best of k by mean
confidence, the AUROC of the confidence, forced reflection, tokens per answer; with n and 95 %
Wilson intervals. Samples are drawn at temperature 1.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from marco_search.pocket import held_out
from ops.pocket.decode import Completion, Decoder
from ops.pocket.evaluate_open_ended import evaluate_open_ended
from ops.pocket.solutions import REFLECTION
from ops.pocket.statistics import auroc, majority, wilson

OPEN_ENDED, TRANSLATION = "open_ended", "heldout_translation"
REASONING_SETS = ("heldout_en", "heldout_zh", "heldout_range_en", "heldout_range_zh")


def extract_answer(text: str) -> int | None:
    """The last integer of the Output part; None if the part is missing or not closed."""
    found = re.search(r"<Output>\n(.*)\n</Output>", text, re.DOTALL)
    numbers = re.findall(r"\d+", found[1]) if found else []
    return int(numbers[-1]) if numbers else None


def evaluate_reasoning(
    decoder: Decoder, rows: list[dict[str, Any]], samples: int, seed: int, rounds: int = 128
) -> dict[str, Any]:
    """All figures for one held-out set of word problems."""
    prompts = [decoder.prompt(row["question"]) for row in rows]
    truth = [row["answer"] for row in rows]
    greedy = decoder.complete(prompts, temperature=0, rows=rounds)
    greedy_right = _right(decoder, greedy, truth)
    report: dict[str, Any] = {"n": len(rows), "k": samples, "greedy": _share(greedy_right)}
    by_operations: dict[int, list[bool]] = {}
    for row, solved in zip(rows, greedy_right, strict=True):
        by_operations.setdefault(len(row["ops"]), []).append(solved)
    report["greedy_by_operations"] = {
        count: f"{sum(flags)}/{len(flags)}" for count, flags in sorted(by_operations.items())
    }
    report["tokens_per_greedy_answer"] = _mean([len(c.ids) for c in greedy])
    report["forced_reflection"] = _share(_forced_reflection(decoder, rows, greedy, rounds))
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    drawn = decoder.complete(repeated, temperature=1, seed=seed, rows=rounds)
    groups = [drawn[i : i + samples] for i in range(0, len(drawn), samples)]
    answers = [[extract_answer(decoder.text(c)) for c in group] for group in groups]
    right = [[a == t for a in given] for given, t in zip(answers, truth, strict=True)]
    flat = [flag for flags in right for flag in flags]
    report["sampled_mean"] = round(sum(flat) / len(flat), 4)
    report["majority"] = _share(
        [majority(given) == t for given, t in zip(answers, truth, strict=True)]
    )
    report["pass"] = _share([any(flags) for flags in right])
    report["best_by_confidence"] = _share(
        [flags[_most_confident(group)] for group, flags in zip(groups, right, strict=True)]
    )
    report["auroc_pooled"] = round(auroc([c.mean_confidence for c in drawn], flat), 4)
    report["auroc_within_problem"] = _auroc_within(groups, right)
    report["confidence_right"] = _mean(
        [c.mean_confidence for c, flag in zip(drawn, flat, strict=True) if flag]
    )
    report["confidence_wrong"] = _mean(
        [c.mean_confidence for c, flag in zip(drawn, flat, strict=True) if not flag]
    )
    return report


def evaluate_translation(decoder: Decoder, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Greedy translations that equal one of the accepted ones, letter for letter."""
    prompts = [decoder.prompt(row["question"]) for row in rows]
    texts = [decoder.text(c) for c in decoder.complete(prompts, temperature=0)]
    right = [
        any(f"<Output>\n{accepted}\n</Output>" in text for accepted in row["expected"])
        for text, row in zip(texts, rows, strict=True)
    ]
    return {"n": len(rows), "exact": _share(right)}


def _right(decoder: Decoder, completions: list[Completion], truth: list[int]) -> list[bool]:
    return [
        extract_answer(decoder.text(c)) == value
        for c, value in zip(completions, truth, strict=True)
    ]


def _forced_reflection(
    decoder: Decoder, rows: list[dict[str, Any]], greedy: list[Completion], rounds: int
) -> list[bool]:
    """The greedy thought, kept open with the phrase, and decoded on greedily."""
    prompts = []
    for row, completion in zip(rows, greedy, strict=True):
        thought = decoder.text(completion).split("\n</Thought>")[0].split(f"\n{REFLECTION}")[0]
        prompts.append(decoder.prompt(row["question"], f"{thought}\n{REFLECTION}\n"))
    redone = decoder.complete(prompts, temperature=0, rows=rounds)
    return _right(decoder, redone, [row["answer"] for row in rows])


def _most_confident(group: list[Completion]) -> int:
    return max(range(len(group)), key=lambda index: group[index].mean_confidence)


def _auroc_within(groups: list[list[Completion]], right: list[list[bool]]) -> float:
    """Mean AUROC over the problems that have both right and wrong samples."""
    values = [
        auroc([c.mean_confidence for c in group], flags)
        for group, flags in zip(groups, right, strict=True)
    ]
    return _mean([value for value in values if not math.isnan(value)])


def _share(flags: list[bool]) -> dict[str, Any]:
    low, high = wilson(sum(flags), len(flags))
    share = round(sum(flags) / max(1, len(flags)), 4)
    return {"share": share, "right": sum(flags), "interval": [round(low, 3), round(high, 3)]}


def _mean(values: list[Any]) -> float:
    return round(float(sum(values)) / len(values), 4) if values else math.nan


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=250, help="problems a set")
    parser.add_argument("--skip", type=int, default=0, help="problems to leave out at the front")
    parser.add_argument("--samples", type=int, default=8, help="k")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sets", nargs="*", default=[*REASONING_SETS, TRANSLATION, OPEN_ENDED])
    options = parser.parse_args()
    torch.set_num_threads(1)
    decoder = Decoder(options.folder)
    for name in options.sets:
        if name == OPEN_ENDED:
            for temperature in (1.0, 0.7):
                figures = evaluate_open_ended(decoder, options.samples, temperature, options.seed)
                print(json.dumps({"set": name, **figures}), flush=True)
            continue
        rows = held_out(name)[options.skip : options.skip + options.count]
        if name == TRANSLATION:
            report = evaluate_translation(decoder, rows)
        else:
            report = evaluate_reasoning(decoder, rows, options.samples, options.seed)
        print(json.dumps({"set": name, **report}), flush=True)


if __name__ == "__main__":
    main()
