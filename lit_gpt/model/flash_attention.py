"""FlashAttention through torch's variable-length attention: version 2, or the one that was activated.

Importing this takes a second (it loads torch's compiler), so only where the kernel is used.
"""

import inspect
from typing import Any, cast

from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from lit_gpt.model.documents import Documents

# torch 2.11 takes grouped heads as they come, 2.12 wants to be told.
_GROUPED: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)


def flash_attention(q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, documents: Documents) -> Tensor:
    """`attention` on CUDA, in bf16 or fp16."""
    bounds, longest = documents
    window = (-1, 0)  # exactly this means causal
    out = varlen_attn(q_TNH, k_TGH, v_TGH, bounds, bounds, longest, longest, window_size=window, **_GROUPED)
    return cast(Tensor, out)
