"""Causal attention inside documents: one signature over several kernels.

Shape suffixes: T = tokens of the flattened batch, N = heads, G = key and value heads, H = head width.
"""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)

from lit_gpt.cli import InputError

FLASH_DTYPES = (torch.bfloat16, torch.float16)
KERNELS = ("fa3", "fa2", "sdpa")
# FlashAttention-2 as torch is built with it, FlashAttention-3 as llammlein.def builds it.
WIDEST_HEAD = {"fa3": 128, "fa2": 256}


class Documents(NamedTuple):
    """The bounds of the documents in a flattened batch; attention never crosses them.

    `cu_seqlens`: int32 (n_documents + 1,), from 0 to T. `max_seqlen`: no document is longer.
    """

    cu_seqlens: Tensor
    max_seqlen: int


def _sdpa(q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, documents: Documents) -> Tensor:
    """SDPA on any device, in any dtype: one call for each group of neighbouring documents of one length."""
    lengths = documents.cu_seqlens.diff().tolist()
    groups = [(length, length * len(list(same))) for length, same in itertools.groupby(lengths)]
    sizes = [tokens for _, tokens in groups]
    outputs = []
    for (length, _), *qkv in zip(groups, *(x.split(sizes) for x in (q_TNH, k_TGH, v_TGH)), strict=True):
        q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in qkv)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


_Kernel = Callable[[Tensor, Tensor, Tensor, Documents], Tensor]
# FlashAttention once it is chosen; SDPA serves what it does not take.
_flash: _Kernel | None = None
_fallback: _Kernel = _sdpa


def keep_sdpa_out_of_graphs() -> None:
    """Let compiled callers break their graph at SDPA; call it before compiling.

    Traced, its loop over documents would be unrolled, and each new number of documents would compile again.
    Not a decorator: that loads torch's compiler, which takes a second.
    """
    global _fallback
    _fallback = torch.compiler.disable(_sdpa)


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
    if _flash is not None and q_TNH.is_cuda and q_TNH.dtype in FLASH_DTYPES:
        return _flash(q_TNH, k_TGH, v_TGH, documents)
    return _fallback(q_TNH, k_TGH, v_TGH, documents)


def choose_attention(
    requested: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[str, str]:
    """Decide and activate, for this process, the kernel behind `attention`; until then it is SDPA.

    Args:
        requested: "auto" takes the first of fa3, fa2, sdpa that works; else one of them by name.
        device: where the model runs.
        dtype: of queries, keys and values, that is the compute dtype.
        head_dim: width of one head.

    Returns:
        The kernel's name, and why it is this one.

    Raises:
        InputError: the requested one is unknown or cannot work, and why.
    """
    global _flash
    if requested not in ("auto", *KERNELS):
        raise InputError(f"--attention {requested}: unknown; known: auto, {', '.join(KERNELS)}")
    obstacles: list[str] = []
    for name in KERNELS if requested == "auto" else (requested,):
        obstacle = None if name == "sdpa" else _flash_obstacle(name, device, dtype, head_dim)
        if obstacle is None and name != "sdpa":
            obstacle = _activation_obstacle(name)
        if obstacle is None:
            _flash = None if name == "sdpa" else _load_flash()
            return name, "; ".join(obstacles) or ("asked for" if requested != "auto" else "the fastest")
        obstacles.append(f"no {name}: {obstacle}")
    raise InputError(f"--attention {requested} cannot work: {obstacles[0].partition(': ')[2]}")


def _load_flash() -> _Kernel:
    """FlashAttention through torch's variable-length attention, in the version that is activated."""
    from torch.nn.attention.varlen import varlen_attn  # takes a second: it loads torch's compiler

    options: dict[str, Any] = {"window_size": (-1, 0)}  # the one window that means causal
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # torch 2.12 must be told, 2.11 need not
        options["enable_gqa"] = True

    def flash(q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, documents: Documents) -> Tensor:
        bounds, longest = documents
        out = varlen_attn(q_TNH, k_TGH, v_TGH, bounds, bounds, longest, longest, **options)
        return cast(Tensor, out)

    return flash


def _flash_obstacle(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type != "cuda":
        return f"FlashAttention needs a CUDA device, not {device.type}"
    if dtype not in FLASH_DTYPES:
        return f"FlashAttention takes bf16 or fp16, not {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"FlashAttention needs an Ampere GPU or newer, not {torch.cuda.get_device_name(device)}"
    if head_dim > (widest := WIDEST_HEAD[name]) or head_dim % 8:
        return f"its heads are a multiple of 8 and at most {widest} wide, this model's {head_dim}"
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
