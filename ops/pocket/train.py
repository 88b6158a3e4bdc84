"""Trains the pocket model from scratch: `python -m ops.pocket.train --out DIR`.

Data parallel over one-thread processes (gloo), bf16 autocast for the matrix products, a schedule
by steps. The same seed, steps, ranks and machine type give the same run. DIR gets the tokenizer,
checkpoints (`step_N/`, Hugging Face format), a resumable state, `log.jsonl` and `final/`.

Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from marco_search.pocket import MODEL_DIR
from ops.pocket.problems import Segment
from ops.pocket.samples import Sample, draw_sample
from ops.pocket.tokenizer import END_OF_TURN, PADDING, build_tokenizer, user_prompt

RATE, WARM_UP_STEPS = 2e-3, 50
POOL = 512  # samples that are sorted by length together
STATE, TOKENIZER = "state.pt", "tokenizer.json"
SHARED = ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja")
"""Files of every model of this kind, as the shipped one has them."""


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
    for segment in (*sample.segments, Segment(END_OF_TURN)):
        part = tokenizer.encode(segment.text).ids
        ids += part
        learned += [segment.learned] * len(part)
    return ids, learned


def batches(tokenizer: Tokenizer, seed: int, rank: int, tokens: int) -> Iterator[Batch]:
    """Endless batches of at most about `tokens` tokens with padding; each rank has its own.

    Samples come in pools, sorted by length within a pool so that little is padded.
    """
    padding, rng = tokenizer.token_to_id(PADDING), random.Random(f"pocket/{seed}/{rank}")
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
        for group in groups:
            ids, learned = (list(map(torch.tensor, rows)) for rows in zip(*group, strict=True))
            padded = pad_sequence(ids, batch_first=True, padding_value=padding)
            yield Batch(padded, pad_sequence(learned, batch_first=True), sum(map(len, ids)))


def build_model(seed: int) -> Any:
    """A new Qwen2ForCausalLM in fp32, as the shipped config.json has it (1.8 M parameters)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = json.loads((MODEL_DIR / "config.json").read_text())
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**config))


def build_optimizers(model: torch.nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """[Muon over the matrices of the layers, AdamW over embedding, norms and biases]."""
    named = list(model.named_parameters())
    hidden = [name for name, p in named if p.ndim == 2 and "embed" not in name]
    matrices = [p for name, p in named if name in hidden]
    others = [p for name, p in named if name not in hidden]
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]


def export_model(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights in bf16 and the tokenizer; all else is as in the shipped folder."""
    folder.mkdir(exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in SHARED:
        shutil.copyfile(MODEL_DIR / name, folder / name)


def train(rank: int, options: argparse.Namespace) -> None:
    """One rank of the run."""
    torch.set_num_threads(1)
    out, steps = options.out, options.steps
    rendezvous = (out / "rendezvous").resolve().as_uri()
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=options.ranks)
    tokenizer = Tokenizer.from_file(str(out / TOKENIZER))
    model = build_model(options.seed)
    optimizers = build_optimizers(model, RATE)
    step = tokens = 0
    if options.resume:
        state = torch.load(out / STATE, weights_only=True)
        step, tokens = state["step"], state["tokens"]
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
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
            states = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "optimizers": states}
            torch.save(state | {"step": step, "tokens": tokens}, out / f"{STATE}.partial")
            (out / f"{STATE}.partial").rename(out / STATE)
    if rank == 0:
        export_model(model, tokenizer, out / "final")
    dist.destroy_process_group()


def _step(
    model: Any, optimizers: Sequence[torch.optim.Optimizer], batch: Batch, rate: float
) -> tuple[float, int]:
    """(mean loss, tokens of all ranks). The rate is the same for both optimizers."""
    loss = batch_loss(model, batch)
    loss.backward()
    # One all-reduce for everything.
    gradients = [parameter.grad for parameter in model.parameters()]
    about = torch.tensor([float(loss.detach()), float(batch.tokens)])
    flat = torch.cat([*(g.flatten() for g in gradients), about])
    dist.all_reduce(flat)
    flat[:-1] /= dist.get_world_size()
    means = flat[:-2].split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(flat[-2]), int(flat[-1])


def batch_loss(model: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy over the learned tokens. Right padding needs no attention mask."""
    targets, learned = batch.ids[:, 1:], batch.learned[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
        logits = functional.linear(hidden[learned], model.lm_head.weight)
    return functional.cross_entropy(logits.float(), targets[learned])


def main() -> None:
    """Start one process per rank and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--tokens", type=int, default=2560, help="per rank and step")
    parser.add_argument("--ranks", type=int, default=2, help="one-thread processes")
    parser.add_argument("--save-every", type=int, default=400, help="steps")
    parser.add_argument("--resume", action="store_true", help=f"go on from DIR/{STATE}")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rendezvous").unlink(missing_ok=True)
    if not (options.out / TOKENIZER).exists():
        build_tokenizer().save(str(options.out / TOKENIZER))
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    torch.multiprocessing.spawn(train, (options,), nprocs=options.ranks)


if __name__ == "__main__":
    main()
