"""AdamW, gradient clipping and the skipping of steps that are not finite, all on the device."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


def build_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    undecayed: Iterable[nn.Parameter] = (),
) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov & Hutter, arXiv:1711.05101) that decays matrices and leaves vectors alone.

    It holds what has a gradient (`requires_grad`).

    Args:
        undecayed: Matrices to treat as vectors are.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spared = set(undecayed)
    decayed = [p for p in parameters if p.dim() >= 2 and p not in spared]
    others = [p for p in parameters if p.dim() < 2 or p in spared]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), fused=True)


def guarded_step(
    optimizer: torch.optim.Optimizer, learning_rate: float, grad_clip: float, loss: Tensor
) -> tuple[Tensor, Tensor]:
    """Clip and step without waiting for the device; do nothing at all if anything is not finite.

    Clipping is folded into the fused kernel as its gradient scale, so the gradients are not written once
    more; a non-finite norm or loss sets the kernel's `found_inf`, which leaves parameters, moments and
    step counts untouched. `loss` must be the same on all ranks, as the norm of sharded gradients is: then
    all of them skip, or none.

    Args:
        optimizer: Fused AdamW whose gradients are complete.
        learning_rate: Of this step.
        grad_clip: Largest norm; 0 for none.
        loss: Scalar, the step's loss over all ranks.

    Returns:
        The norm before clipping and whether the step was skipped (1.0) or not (0.0), both on the device.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = get_total_norm(gradients, foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    norm = norm.float()
    skipped = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
    limit = grad_clip if grad_clip > 0 else math.inf
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.grad_scale = torch.clamp(norm / limit, min=1.0)  # type: ignore[attr-defined]
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.step()
    return norm, skipped
