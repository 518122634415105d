"""Causal attention inside documents: one signature over several kernels.

Shape suffixes: T = tokens of the flattened batch, N = heads, G = key and value heads, H = head width.
"""

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

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
_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
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
        return varlen_attn(
            q_TNH, k_TGH, v_TGH, bounds, bounds, longest, longest, window_size=window, **_GROUPED
        )
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


# SDPA per document -- an operator of its own, opaque to torch.compile: traced, the loop over documents would
# be unrolled and every new number of documents would compile again.


@torch.library.custom_op("lit_gpt::sdpa_per_document", mutates_args=())
def _sdpa_per_document(
    q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (T, N, H) and the log-sum-exp (N, T) that the CPU kernel's backward wants."""
    out_TNH = _empty_like(q_TNH)
    lse_NT = _empty_lse(q_TNH)
    for piece in _pieces(cu_seqlens):
        q, k, v = (_as_batch(x[piece]) for x in (q_TNH, k_TGH, v_TGH))
        if q.is_cpu:
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=True)
            lse_NT[:, piece] = lse[0]
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out_TNH[piece] = out[0].transpose(0, 1)
    return out_TNH, lse_NT


@_sdpa_per_document.register_fake
def _(q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_like(q_TNH), _empty_lse(q_TNH)


@torch.library.custom_op("lit_gpt::sdpa_per_document_backward", mutates_args=())
def _sdpa_per_document_backward(
    grad_TNH: Tensor,
    q_TNH: Tensor,
    k_TGH: Tensor,
    v_TGH: Tensor,
    out_TNH: Tensor,
    lse_NT: Tensor,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (q_TNH, k_TGH, v_TGH)
    gradients = _empty_like(q_TNH), _empty_like(k_TGH), _empty_like(v_TGH)
    for piece in _pieces(cu_seqlens):
        grad, q, k, v = (_as_batch(x[piece]) for x in (grad_TNH, *inputs))
        if q.is_cpu:
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, q, k, v, _as_batch(out_TNH[piece]), lse_NT[None, :, piece], 0.0, True
            )
        else:
            with torch.enable_grad():
                q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            parts = torch.autograd.grad(out, (q, k, v), grad)
        for gradient, part in zip(gradients, parts, strict=True):
            gradient[piece] = part[0].transpose(0, 1)
    return gradients


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


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _empty_lse(q_TNH: Tensor) -> Tensor:
    accumulate = torch.promote_types(q_TNH.dtype, torch.float32)
    return q_TNH.new_empty((q_TNH.shape[1], q_TNH.shape[0]), dtype=accumulate)


def _pieces(cu_seqlens: Tensor) -> Iterator[slice]:
    """Each document as a slice of the tokens."""
    bounds = cu_seqlens.tolist()
    return (slice(start, stop) for start, stop in itertools.pairwise(bounds))


def _as_batch(x_TNH: Tensor) -> Tensor:
    """(T, N, H) as the (1, N, T, H) that SDPA takes, without a copy."""
    return x_TNH.transpose(0, 1)[None]
