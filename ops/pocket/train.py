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
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from ops.pocket.batches import Batch, batches
from ops.pocket.model import build_model, export_model
from ops.pocket.optimizer import (
    build_optimizers,
    learning_rate_factor,
    load_state_tensors,
    set_learning_rate,
    state_tensors,
)
from ops.pocket.tokenizer import build_tokenizer, save_tokenizer

SEED, STEPS, TOKENS_PER_RANK, RATE = 0, 2200, 2560, 2e-3


def main() -> None:
    """Starts one process per rank and waits for them, or runs one rank."""
    options = _options()
    out: Path = options.out
    if options.rank is not None:
        train(options)
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "rendezvous").unlink(missing_ok=True)
    if not (out / "tokenizer" / "tokenizer.json").exists():
        save_tokenizer(build_tokenizer(), out / "tokenizer")
    command = [sys.executable, "-m", "ops.pocket.train", *sys.argv[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, "--rank", str(rank)], env=environment)
        for rank in range(options.ranks)
    ]
    codes = [process.wait() for process in ranks]
    sys.exit(max(abs(code) for code in codes))


def train(options: argparse.Namespace) -> None:
    """One rank of the run."""
    torch.set_num_threads(1)
    out: Path = options.out
    rank: int = options.rank
    rendezvous = (out / "rendezvous").resolve().as_uri()
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=options.ranks)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    model = build_model(tokenizer, options.seed)
    optimizers = build_optimizers(model, options.rate)
    step, tokens = (
        _resume(out / "state.safetensors", model, optimizers) if options.resume else (0, 0)
    )
    stream = itertools.islice(
        batches(tokenizer, options.seed, rank, options.tokens), step, options.steps
    )
    begun, begun_tokens, smooth = time.monotonic(), tokens, 0.0
    for batch in stream:
        rate = options.rate * learning_rate_factor(step, options.steps)
        set_learning_rate(optimizers, rate)
        loss = batch_loss(model, batch)
        loss.backward()
        mean_loss, batch_tokens = _average_gradients(model, float(loss.detach()), batch.tokens)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + batch_tokens
        smooth = mean_loss if smooth == 0 else 0.98 * smooth + 0.02 * mean_loss
        if rank == 0 and step % 50 == 0:
            minutes = (time.monotonic() - begun) / 60
            line = {"step": step, "tokens": tokens, "loss": round(smooth, 4), "rate": rate}
            speed = round((tokens - begun_tokens) / minutes / 60)
            _log(out, {**line, "minutes": round(minutes, 2), "tokens_per_s": speed})
        if rank == 0 and step % options.save_every == 0 and step < options.steps:
            export_model(model, tokenizer, out / f"step_{step}")
            _save_state(out / "state.safetensors", model, optimizers, step, tokens)
    if rank == 0:
        export_model(model, tokenizer, out / "final")
    dist.destroy_process_group()


def batch_loss(model: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy over the learned tokens. Right padding needs no attention mask."""
    targets, learned = batch.ids[:, 1:], batch.learned[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
        logits = functional.linear(hidden[learned], model.lm_head.weight)
    return functional.cross_entropy(logits.float(), targets[learned])


def _average_gradients(model: Any, loss: float, tokens: int) -> tuple[float, int]:
    """One flat all-reduce; returns (mean loss, tokens of all ranks)."""
    parameters = list(model.parameters())
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    flat = torch.cat([flat, torch.tensor([loss, float(tokens)])])
    dist.all_reduce(flat)
    flat[:-1] /= dist.get_world_size()
    offset = 0
    for parameter in parameters:
        size = parameter.numel()
        parameter.grad.copy_(flat[offset : offset + size].view_as(parameter))
        offset += size
    return float(flat[-2]), int(flat[-1])


def _save_state(
    path: Path, model: Any, optimizers: list[torch.optim.Optimizer], step: int, tokens: int
) -> None:
    tensors = {f"model.{n}": p.detach().clone() for n, p in model.named_parameters()}
    tensors.update(state_tensors(optimizers))
    temporary = path.with_suffix(".partial")
    save_file(tensors, str(temporary), metadata={"step": str(step), "tokens": str(tokens)})
    temporary.rename(path)
    path.with_suffix(".json").write_text(json.dumps({"step": step, "tokens": tokens}))


def _resume(path: Path, model: Any, optimizers: list[torch.optim.Optimizer]) -> tuple[int, int]:
    tensors = load_file(str(path))
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"model.{name}"])
    load_state_tensors(optimizers, tensors)
    done = json.loads(path.with_suffix(".json").read_text())
    return done["step"], done["tokens"]


def _log(out: Path, line: dict[str, float]) -> None:
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rate", type=float, default=RATE, help="peak learning rate")
    parser.add_argument("--tokens", type=int, default=TOKENS_PER_RANK, help="per rank and step")
    parser.add_argument("--ranks", type=int, default=2, help="one-thread processes")
    parser.add_argument("--save-every", type=int, default=400, help="steps")
    parser.add_argument("--resume", action="store_true", help="go on from DIR/state.safetensors")
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
