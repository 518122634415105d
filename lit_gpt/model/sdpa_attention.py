"""SDPA per document, as an operator of its own: on CPU, and for what FlashAttention does not take.

Opaque to torch.compile: traced, its loop over documents would be unrolled, and every new number of documents
would compile again. Shape suffixes as in attention.py; L = tokens of a document.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def sdpa_attention(q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """`attention` on any device, in any dtype."""
    out_TNH, _ = torch.ops.lit_gpt.sdpa_per_document(q_TNH, k_TGH, v_TGH, cu_seqlens)
    return out_TNH


@torch.library.custom_op("lit_gpt::sdpa_per_document", mutates_args=())
def _sdpa_per_document(
    q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (T, N, H), and the log-sum-exp (T, N) that the CPU kernel's backward wants."""
    results = []
    for run in _runs(cu_seqlens):
        q, k, v = (run.batch(x) for x in (q_TNH, k_TGH, v_TGH))
        if _has_cpu_kernel(q):
            results.append(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True))
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            results.append((out, out[..., 0].to(_lse_dtype(out))))
    out_TNH, lse_TN = (_flatten(parts) for parts in zip(*results, strict=True))
    return out_TNH, lse_TN


@_sdpa_per_document.register_fake
def _(q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_like(q_TNH), _empty_like(q_TNH[..., 0]).to(_lse_dtype(q_TNH))


@torch.library.custom_op("lit_gpt::sdpa_per_document_backward", mutates_args=())
def _sdpa_per_document_backward(
    grad_TNH: Tensor,
    q_TNH: Tensor,
    k_TGH: Tensor,
    v_TGH: Tensor,
    out_TNH: Tensor,
    lse_TN: Tensor,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    results = []
    for run in _runs(cu_seqlens):
        grad, q, k, v, out, lse = (run.batch(x) for x in (grad_TNH, q_TNH, k_TGH, v_TGH, out_TNH, lse_TN))
        if _has_cpu_kernel(q):
            results.append(
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    grad, q, k, v, out, lse, 0.0, True
                )
            )
        else:
            each = [_gradients(*document) for document in zip(grad, q, k, v, strict=True)]
            results.append(tuple(torch.stack(parts) for parts in zip(*each, strict=True)))
    grad_q, grad_k, grad_v = (_flatten(parts) for parts in zip(*results, strict=True))
    return grad_q, grad_k, grad_v


@_sdpa_per_document_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(q), _empty_like(k), _empty_like(v)


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs[:3], *output, inputs[3])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_TNH: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, cu_seqlens = ctx.saved_tensors
    return *torch.ops.lit_gpt.sdpa_per_document_backward(grad_TNH, q, k, v, out, lse, cu_seqlens), None


_sdpa_per_document.register_autograd(_backward, setup_context=_save_for_backward)


class _Run(NamedTuple):
    """Neighbouring documents of one length, which one call computes together."""

    start: int
    stop: int
    length: int

    def batch(self, x: Tensor) -> Tensor:
        """(T, N, ...) as the (documents, N, length, ...) that SDPA takes, without a copy."""
        return x[self.start : self.stop].unflatten(0, (-1, self.length)).transpose(1, 2)


def _runs(cu_seqlens: Tensor) -> Iterator[_Run]:
    documents = itertools.pairwise(cu_seqlens.tolist())
    for length, group in itertools.groupby(documents, key=lambda bounds: bounds[1] - bounds[0]):
        members = list(group)
        yield _Run(members[0][0], members[-1][1], length)


def _flatten(parts: Sequence[Tensor]) -> Tensor:
    """The inverse of `_Run.batch` over all runs, contiguous."""
    return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])


def _has_cpu_kernel(q: Tensor) -> bool:
    """Whether the kernel that hands out its log-sum-exp works; elsewhere the backward is spelt out."""
    return q.is_cpu


def _gradients(grad_NLH: Tensor, q_NLH: Tensor, k_GLH: Tensor, v_GLH: Tensor) -> tuple[Tensor, ...]:
    """Gradients of one document's attention by q, k and v, from the formula, in fp32 or wider.

    An operator's backward runs below autograd, so the forward cannot simply be differentiated again. The
    scores of one document exist at once: 4 N L^2 bytes, a few times.
    """
    shape, groups = q_NLH.shape, k_GLH.shape[0]
    q, grad = (x.to(_lse_dtype(x)).unflatten(0, (groups, -1)) for x in (q_NLH, grad_NLH))  # (G, N/G, L, H)
    k, v = (x.to(_lse_dtype(x))[:, None] for x in (k_GLH, v_GLH))
    scale = shape[-1] ** -0.5
    later = torch.ones(shape[1], shape[1], dtype=torch.bool, device=q.device).triu(1)
    p = (q @ k.mT * scale).masked_fill_(later, float("-inf")).softmax(-1)
    grad_p = grad @ v.mT
    grad_scores = p * (grad_p - (grad_p * p).sum(-1, keepdim=True)) * scale
    grad_k, grad_v = (grad_scores.mT @ q).sum(1), (p.mT @ grad).sum(1)
    return tuple(x.to(q_NLH.dtype) for x in ((grad_scores @ k).reshape(shape), grad_k, grad_v))


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _lse_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
