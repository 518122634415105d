"""Head and cross-entropy together, in chunks, so that the logits of a batch never exist all at once.

Shape suffixes: T = tokens, C = width of the residual stream, V = vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from lit_gpt.documents import IGNORE_INDEX

CHUNK_TOKENS = 4096
"""Tokens whose logits exist at a time: 4096 x 32064 in bf16 are 263 MB."""


def chunked_cross_entropy(hidden_TC: Tensor, weight_VC: Tensor, labels_T: Tensor) -> Tensor:
    """Sum over tokens of -log softmax(hidden @ weight.T)[label]; a label of -100 counts nothing.

    The products run in the autocast dtype if there is one, else in that of `hidden_TC`; softmax, loss and
    the sum over chunks in fp32. Gradients are made in the forward pass, while a chunk's logits are at hand.

    Args:
        hidden_TC: output of the last norm.
        weight_VC: weight of the head.
        labels_T: int64 targets.

    Returns:
        fp32 scalar (fp64 for fp64 inputs).
    """
    device = hidden_TC.device.type
    if torch.is_autocast_enabled(device):
        hidden_TC = hidden_TC.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _HeadLoss.apply(hidden_TC, weight_VC, labels_T, torch.is_grad_enabled())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TC: Tensor, weight_VC: Tensor, labels_T: Tensor, with_gradients: bool
    ) -> Tensor:
        accumulate = torch.promote_types(hidden_TC.dtype, torch.float32)
        weight = weight_VC.to(hidden_TC.dtype)
        total = hidden_TC.new_zeros((), dtype=accumulate)
        grad_hidden = torch.empty_like(hidden_TC)
        grad_weight = torch.zeros_like(weight, dtype=accumulate)
        for hidden, labels, grad in zip(
            *(x.split(CHUNK_TOKENS) for x in (hidden_TC, labels_T, grad_hidden)), strict=True
        ):
            loss, grad_logits = _loss_and_gradient(hidden @ weight.T, labels, accumulate)
            total += loss
            if with_gradients:
                torch.mm(grad_logits, weight, out=grad)
                grad_weight += grad_logits.T @ hidden
        if with_gradients:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight_VC.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None


def _loss_and_gradient(logits_TV: Tensor, labels_T: Tensor, accumulate: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sum of the chunk's losses and its gradient by the logits, in the logits' dtype."""
    counts = labels_T != IGNORE_INDEX
    targets = torch.where(counts, labels_T, 0)[:, None]
    log_probabilities = torch.log_softmax(logits_TV.to(accumulate), dim=-1)
    loss = -(log_probabilities.gather(1, targets)[:, 0] * counts).sum()
    one_hot = torch.zeros_like(log_probabilities).scatter_(1, targets, 1.0)
    gradient = (log_probabilities.exp() - one_hot) * counts[:, None]
    return loss, gradient.to(logits_TV.dtype)
