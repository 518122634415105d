"""Causal attention inside documents: one signature over several kernels.

Shape suffixes: T = tokens of the flattened batch, N = heads, G = key and value heads, H = head width.
"""

import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)
from torch.nn.attention.varlen import varlen_attn

from lit_gpt.cli import InputError
from lit_gpt.documents import Documents

FLASH_DTYPES = (torch.bfloat16, torch.float16)
KERNELS = ("fa3", "fa2", "sdpa")

# torch 2.11 takes grouped heads as they come, 2.12 wants to be told.
_GROUPED: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)
_flash_allowed = True


def attention(q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, documents: Documents) -> Tensor:
    """Each token attends to itself and to the earlier tokens of its document, scaled by 1/sqrt(H).

    Args:
        q_TNH: queries; N is a multiple of G (grouped-query attention).
        k_TGH: keys.
        v_TGH: values.
        documents: bounds over the T tokens; every token belongs to exactly one document.

    Returns:
        (T, N, H), the dtype of q.
    """
    bounds, longest = documents
    if _flash_allowed and q_TNH.is_cuda and q_TNH.dtype in FLASH_DTYPES:
        window = (-1, 0)  # exactly this means causal
        out = varlen_attn(
            q_TNH, k_TGH, v_TGH, bounds, bounds, longest, longest, window_size=window, **_GROUPED
        )
        return cast(Tensor, out)
    out_TNH, _ = torch.ops.lit_gpt.sdpa_per_document(q_TNH, k_TGH, v_TGH, bounds)
    return out_TNH


def choose_attention(requested: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Decide and activate, for this process, the kernel behind `attention`.

    Args:
        requested: "auto" takes the first of fa3, fa2, sdpa that works; else one of them by name.
        device: where the model runs.
        dtype: of queries, keys and values, that is the compute dtype.

    Returns:
        The kernel's name, and why it is this one.

    Raises:
        InputError: the requested one is unknown or cannot work, and why.
    """
    global _flash_allowed
    if requested not in ("auto", *KERNELS):
        raise InputError(f"--attention {requested}: unknown; known: auto, {', '.join(KERNELS)}")
    obstacles: list[str] = []
    for name in KERNELS if requested == "auto" else (requested,):
        obstacle = None if name == "sdpa" else _flash_obstacle(device, dtype) or _activation_obstacle(name)
        if obstacle is None:
            _flash_allowed = name != "sdpa"
            return name, "; ".join(obstacles) or ("asked for" if requested != "auto" else "the fastest")
        obstacles.append(f"no {name}: {obstacle}")
    raise InputError(f"--attention {requested} cannot work: {obstacles[0].partition(': ')[2]}")


def _flash_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"FlashAttention needs a CUDA device, not {device.type}"
    if dtype not in FLASH_DTYPES:
        return f"FlashAttention takes bf16 or fp16, not {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"FlashAttention needs an Ampere GPU or newer, not {torch.cuda.get_device_name(device)}"
    return None


def _activation_obstacle(name: str) -> str | None:
    """Make torch's flash kernels this version, or say why that cannot be."""
    if name == "fa2":  # built into torch
        if current_flash_attention_impl() is not None:
            restore_flash_attention_impl()
        return None
    if torch.cuda.get_device_capability()[0] != 9:
        return "FlashAttention-3 needs a Hopper GPU"
    try:
        activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError, OSError) as error:
        return f"FlashAttention-3 is not installed ({error})"
    return None


# SDPA per document is an operator of its own, opaque to torch.compile: traced, its loop would be unrolled and
# every new number of documents would compile again.


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
