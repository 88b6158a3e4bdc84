"""Measures open-ended prompts: how many samples are acceptable, and how many distinct ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ops.pocket.decode import Decoder
from ops.pocket.open_ended import HOBBIES
from ops.pocket.samples import is_held_out

SUM_PROMPTS = ("Find two numbers whose sum is {total}.", "找出两个数，它们的和是{total}。")
TOTALS = range(10, 200)


def evaluate_open_ended(
    decoder: Decoder, samples: int, temperature: float, seed: int
) -> dict[str, Any]:
    """Gifts for known hobbies, and pairs of numbers for sums held out from training.

    A gift is acceptable if training names it for that hobby; a pair, if it adds up.
    """
    gifts: list[tuple[str, Callable[[str], bool]]] = []
    for english, chinese, gifts_en, gifts_zh in HOBBIES:
        known_en = frozenset(f"{gift[0].upper()}{gift[1:]}." for gift in gifts_en)
        known_zh = frozenset(f"{gift}。" for gift in gifts_zh)
        prompt = f"Suggest a gift for a friend who likes {english}."
        gifts.append((prompt, known_en.__contains__))
        gifts.append((f"给喜欢{chinese}的朋友推荐一份礼物。", known_zh.__contains__))
    sums: list[tuple[str, Callable[[str], bool]]] = [
        (prompt.format(total=total), _adds_up_to(total))
        for total in TOTALS
        for prompt in SUM_PROMPTS
        if is_held_out(prompt.format(total=total))
    ]
    return {
        "temperature": temperature,
        "gifts": _measure(decoder, gifts, samples, temperature, seed),
        "held_out_sums": _measure(decoder, sums, samples, temperature, seed),
    }


def _adds_up_to(total: int) -> Callable[[str], bool]:
    def check(output: str) -> bool:
        numbers = [int(number) for number in re.findall(r"\d+", output)]
        return len(numbers) == 2 and sum(numbers) == total

    return check


def _measure(
    decoder: Decoder,
    tasks: list[tuple[str, Callable[[str], bool]]],
    samples: int,
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    prompts = [decoder.prompt(prompt) for prompt, _ in tasks for _ in range(samples)]
    drawn = decoder.complete(prompts, temperature, seed)
    good, distinct, best = 0, 0, 0
    for index, (_, acceptable) in enumerate(tasks):
        group = drawn[index * samples : (index + 1) * samples]
        outputs = [_output(decoder.text(completion)) for completion in group]
        good += sum(map(acceptable, outputs))
        distinct += len(set(filter(acceptable, outputs)))
        order = sorted(zip(group, outputs, strict=True), key=lambda pair: pair[0].mean_confidence)
        best += acceptable(order[-1][1])
    return {
        "prompts": len(tasks),
        "k": samples,
        "acceptable": round(good / len(prompts), 4),
        "distinct_acceptable_per_prompt": round(distinct / len(tasks), 2),
        "most_confident_acceptable": f"{best}/{len(tasks)}",
    }


def _output(text: str) -> str:
    found = re.search(r"<Output>\n(.*)\n</Output>", text)
    return found[1] if found else ""
