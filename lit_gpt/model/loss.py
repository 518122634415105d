"""Head and cross-entropy together, in chunks, so that the logits of a batch never exist all at once.

Shape suffixes: T = tokens, C = width of the residual stream, V = vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position without a target."""
CHUNK_TOKENS = {"cpu": 512, "cuda": 8192}
"""Tokens whose logits exist at a time: small where caches count, large where products must fill a device.
With 32,064 ids the logits of a chunk are 66 MB (fp32) and 525 MB (bf16)."""
LARGE_CARD_BYTES = 60e9


def cuda_chunk_tokens(memory_bytes: float) -> int:
    """Tokens of a chunk on a CUDA device with so much memory.

    The gradient of 8,192 x 768 hidden states is 192 tiles of 128 x 256: 132 multiprocessors compute them in
    two waves, the second half empty. 16,384 tokens make three waves, nearly full.
    """
    return CHUNK_TOKENS["cuda"] * (2 if memory_bytes >= LARGE_CARD_BYTES else 1)


def chunk_tokens(device: torch.device) -> int:
    """Tokens of a chunk on this device."""
    if device.type == "cuda":
        return cuda_chunk_tokens(torch.cuda.get_device_properties(device).total_memory)
    return CHUNK_TOKENS["cpu"]


def chunked_cross_entropy(hidden_TC: Tensor, weight_VC: Tensor, labels_T: Tensor) -> Tensor:
    """Sum over tokens of -log softmax(hidden @ weight.T)[label]; a label of -100 counts as 0.

    The products run in the dtype of `hidden_TC`; softmax, loss and the sums over chunks in fp32. Gradients
    are made in the forward pass, while a chunk's logits are at hand.

    Args:
        hidden_TC: output of the last norm.
        weight_VC: weight of the head; its gradient has its dtype.
        labels_T: int64 targets.

    Returns:
        fp32 scalar (fp64 for fp64 inputs).
    """
    return token_losses(hidden_TC, weight_VC, labels_T)[0]


def token_losses(hidden_TC: Tensor, weight_VC: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    """`chunked_cross_entropy`, and beside it the tokens' losses (T,) that it is the sum of, for figures only:
    they carry no gradient.
    """
    with torch.autocast(hidden_TC.device.type, enabled=False):
        return _HeadLoss.apply(hidden_TC, weight_VC, labels_T, torch.is_grad_enabled())


def segment_means(losses_T: Tensor, labels_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean loss over the targets of each segment, NaN where it has none. Nothing waits for the device.

    Args:
        losses_T: of `token_losses`.
        labels_T: int64; -100 where there is no target.
        cu_seqlens: int32 (n_segments + 1,), bounds of the segments, from 0 to T.

    Returns:
        fp16 (n_segments,): within 2^-11 of the mean from 6.1e-5 on.
    """
    # Not a difference of cumulated sums: CUDA has no deterministic one of floats.
    at = torch.arange(losses_T.numel(), dtype=cu_seqlens.dtype, device=losses_T.device)
    segment_T = torch.bucketize(at, cu_seqlens[1:], right=True)
    summed_T2 = torch.stack([losses_T, (labels_T != IGNORE_INDEX).to(losses_T.dtype)], dim=1)
    sums = summed_T2.new_zeros(cu_seqlens.numel() - 1, 2).index_add_(0, segment_T, summed_T2)
    return (sums[:, 0] / sums[:, 1]).half()


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TC: Tensor, weight_VC: Tensor, labels_T: Tensor, with_gradients: bool
    ) -> tuple[Tensor, Tensor]:
        loss_and_gradient = _compiled() if hidden_TC.is_cuda else _loss_and_gradient
        accumulate = torch.promote_types(hidden_TC.dtype, torch.float32)
        weight = weight_VC.to(hidden_TC.dtype)
        counts_T1 = (labels_T != IGNORE_INDEX)[:, None]
        total = hidden_TC.new_zeros((), dtype=accumulate)
        losses_T = hidden_TC.new_empty(labels_T.shape, dtype=accumulate)
        grad_hidden = torch.empty_like(hidden_TC) if with_gradients else hidden_TC
        grad_weight = torch.zeros_like(weight, dtype=accumulate) if with_gradients else weight
        targets_T1 = labels_T.where(counts_T1[:, 0], 0)[:, None]
        columns = (hidden_TC, targets_T1, counts_T1, grad_hidden, losses_T[:, None])
        for chunk in zip(*(x.split(chunk_tokens(hidden_TC.device)) for x in columns), strict=True):
            hidden, targets, counts, grad, losses_out = chunk
            losses, grad_logits = loss_and_gradient(hidden @ weight.T, targets, accumulate, with_gradients)
            total += losses.mul_(counts).sum()
            losses_out.copy_(losses)
            if with_gradients:
                torch.mm(grad_logits, weight, out=grad).mul_(counts)
                _add_product(grad_weight, grad_logits.T, hidden * counts)
        if with_gradients:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight_VC.dtype))
        ctx.mark_non_differentiable(losses_T)
        return total, losses_T

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None


def _loss_and_gradient(
    logits_TV: Tensor, targets_T1: Tensor, accumulate: torch.dtype, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Losses of a chunk's tokens (T, 1) and their gradient by the logits, softmax - one_hot (T, V)."""
    log_p = torch.log_softmax(logits_TV, dim=-1, dtype=accumulate)
    target_log_p = log_p.gather(1, targets_T1)
    if not with_gradient:
        return -target_log_p, logits_TV
    gradient = log_p.exp_().to(logits_TV.dtype)
    # expm1 keeps p - 1 exact for a target that is nearly certain, where bf16 would round it to 0.
    gradient.scatter_(1, targets_T1, target_log_p.expm1().to(logits_TV.dtype))
    return -target_log_p, gradient


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_loss_and_gradient, dynamic=False)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where `total` may be of a wider dtype."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:  # CUDA alone has a product that adds to fp32 without rounding to bf16 first
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
