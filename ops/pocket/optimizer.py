"""Muon for the hidden matrices, AdamW for the rest, and a learning rate that ends at zero.

Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WARM_UP_STEPS = 50


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero at the last step."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * max(0.0, 1 - step / steps)


def build_optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """[Muon over the matrices of the layers, AdamW over embedding, norms and biases]."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and "embed" not in name
        (matrices if hidden else others).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adamw]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """The same rate for both: Muon's updates are scaled to AdamW's size."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def state_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All moments under flat names, to be written as safetensors."""
    return {
        f"optimizer.{which}.{index}.{key}": value.detach().clone().contiguous()
        for which, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def load_state_tensors(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """The inverse of `state_tensors`."""
    for which, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            parts = name.split(".")
            if parts[0] == "optimizer" and int(parts[1]) == which:
                state.setdefault(int(parts[2]), {})[parts[3]] = tensor
        whole["state"] = state
        optimizer.load_state_dict(whole)
