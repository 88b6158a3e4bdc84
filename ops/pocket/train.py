"""Trains the pocket model from scratch: `python -m ops.pocket.train --out DIR`.

Data parallel over one-thread processes (gloo), bf16 autocast for the matrix products, a schedule
by steps. The same seed, steps, ranks and machine type give the same run. DIR gets the tokenizer,
checkpoints (`step_N/`, Hugging Face format), a resumable state, `log.jsonl` and `final/`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from ops.pocket.model import build_model, build_optimizers, export_model
from ops.pocket.samples import Sample, draw_sample
from ops.pocket.tokenizer import (
    END_OF_TURN,
    PADDING,
    build_tokenizer,
    save_tokenizer,
    token_id,
    user_prompt,
)

SEED, STEPS, TOKENS_PER_RANK, RATE = 0, 2200, 2560, 2e-3
WARM_UP_STEPS = 50
POOL = 512  # samples that are sorted by length together
STATE = "state.pt"


# -- Batches ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """ids [rows, length] right-padded; learned [rows, length] marks the tokens in the loss."""

    ids: Tensor
    learned: Tensor
    tokens: int


Encoded = tuple[list[int], list[bool]]
"""Token ids of a whole conversation, and which of them count in the loss."""


def encode_sample(tokenizer: Tokenizer, sample: Sample) -> Encoded:
    """The conversation of a sample. Prompts and slips are not learned."""
    ids = tokenizer.encode(user_prompt(sample.user)).ids
    learned = [False] * len(ids)
    for segment in sample.segments:
        part = tokenizer.encode(segment.text).ids
        ids += part
        learned += [segment.learned] * len(part)
    return [*ids, token_id(tokenizer, END_OF_TURN)], [*learned, True]


def batches(tokenizer: Tokenizer, seed: int, rank: int, tokens: int) -> Iterator[Batch]:
    """Endless batches of at most about `tokens` tokens with padding; each rank has its own.

    Samples come in pools, sorted by length within a pool so that little is padded.
    """
    padding, rng = token_id(tokenizer, PADDING), random.Random(f"pocket/{seed}/{rank}")
    while True:
        pool = [encode_sample(tokenizer, draw_sample(rng)) for _ in range(POOL)]
        pool.sort(key=lambda item: len(item[0]))
        groups: list[list[Encoded]] = [[]]
        for item in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(item[0]) > tokens:
                groups.append([])
            groups[-1].append(item)
        # The last group of a pool is often small; a full one keeps the steps alike.
        if len(groups[-1]) * len(groups[-1][-1][0]) < tokens // 2 and len(groups) > 1:
            groups.pop()
        rng.shuffle(groups)
        yield from (_pad(group, padding) for group in groups)


def _pad(group: Sequence[Encoded], padding: int) -> Batch:
    length = max(len(ids) for ids, _ in group)
    ids = [row + [padding] * (length - len(row)) for row, _ in group]
    learned = [row + [False] * (length - len(row)) for _, row in group]
    return Batch(torch.tensor(ids), torch.tensor(learned), sum(len(row) for row, _ in group))


# -- Training ---------------------------------------------------------------------------


def main() -> None:
    """Start one process per rank and wait for them, or run one rank."""
    options = _options()
    out: Path = options.out
    if options.rank is not None:
        train(options)
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "rendezvous").unlink(missing_ok=True)
    if not (out / "tokenizer" / "tokenizer.json").exists():
        save_tokenizer(build_tokenizer(), out / "tokenizer")
    command = [sys.executable, "-m", "ops.pocket.train", *sys.argv[1:], "--rank"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank)], env=environment) for rank in range(options.ranks)
    ]
    sys.exit(max(abs(process.wait()) for process in ranks))


def train(options: argparse.Namespace) -> None:
    """One rank of the run."""
    torch.set_num_threads(1)
    out, rank, steps = options.out, options.rank, options.steps
    rendezvous = (out / "rendezvous").resolve().as_uri()
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=options.ranks)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    model = build_model(tokenizer, options.seed)
    optimizers = build_optimizers(model, RATE)
    step, tokens = _load(out / STATE, model, optimizers) if options.resume else (0, 0)
    stream = batches(tokenizer, options.seed, rank, options.tokens)
    began, began_tokens, smooth = time.monotonic(), tokens, 0.0
    for batch in itertools.islice(stream, step, steps):
        # Linear warm-up, then linear decay to zero at the last step.
        rate = RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - step / steps)
        loss, batch_tokens = _step(model, optimizers, batch, rate)
        step, tokens = step + 1, tokens + batch_tokens
        smooth = loss if smooth == 0 else 0.98 * smooth + 0.02 * loss
        if rank == 0 and step % 50 == 0:
            seconds = time.monotonic() - began
            line = {"step": step, "tokens": tokens, "loss": round(smooth, 4), "rate": rate}
            line |= {"minutes": round(seconds / 60, 2)}
            line |= {"tokens_per_s": round((tokens - began_tokens) / seconds)}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if rank == 0 and step % options.save_every == 0 and step < steps:
            export_model(model, tokenizer, out / f"step_{step}")
            _save(out / STATE, model, optimizers, step, tokens)
    if rank == 0:
        export_model(model, tokenizer, out / "final")
    dist.destroy_process_group()


def _step(
    model: Any, optimizers: Sequence[torch.optim.Optimizer], batch: Batch, rate: float
) -> tuple[float, int]:
    """(mean loss, tokens of all ranks). The rate is the same for both optimizers."""
    loss = batch_loss(model, batch)
    loss.backward()
    averaged = _average_gradients(model, float(loss.detach()), batch.tokens)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return averaged


def batch_loss(model: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy over the learned tokens. Right padding needs no attention mask."""
    targets, learned = batch.ids[:, 1:], batch.learned[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
        logits = functional.linear(hidden[learned], model.lm_head.weight)
    return functional.cross_entropy(logits.float(), targets[learned])


def _average_gradients(model: Any, loss: float, tokens: int) -> tuple[float, int]:
    """One flat all-reduce; returns (mean loss, tokens of all ranks)."""
    gradients = [parameter.grad for parameter in model.parameters()]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([loss, float(tokens)])])
    dist.all_reduce(flat)
    flat[:-1] /= dist.get_world_size()
    means = flat[:-2].split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return float(flat[-2]), int(flat[-1])


def _save(
    path: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer], step: int, tokens: int
) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"model": model.state_dict(), "optimizers": states, "step": step, "tokens": tokens}
    torch.save(state, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


def _load(path: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[int, int]:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["tokens"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tokens", type=int, default=TOKENS_PER_RANK, help="per rank and step")
    parser.add_argument("--ranks", type=int, default=2, help="one-thread processes")
    parser.add_argument("--save-every", type=int, default=400, help="steps")
    parser.add_argument("--resume", action="store_true", help=f"go on from DIR/{STATE}")
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
