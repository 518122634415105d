"""One table of names and layouts, lit <-> Hugging Face Llama, read in both directions.

A tensor of ours is one or more Hugging Face tensors, stacked along the rows. RoPE turns the same pairs on
both sides, so nothing is permuted.
"""

import re
from typing import NamedTuple

from lit_gpt.model.config import ModelConfig

_TABLE: dict[str, tuple[str, ...]] = {
    "transformer.wte.weight": ("model.embed_tokens.weight",),
    "transformer.h.{}.norm_1.weight": ("model.layers.{}.input_layernorm.weight",),
    "transformer.h.{}.attn.qkv.weight": (
        "model.layers.{}.self_attn.q_proj.weight",
        "model.layers.{}.self_attn.k_proj.weight",
        "model.layers.{}.self_attn.v_proj.weight",
    ),
    "transformer.h.{}.attn.proj.weight": ("model.layers.{}.self_attn.o_proj.weight",),
    "transformer.h.{}.norm_2.weight": ("model.layers.{}.post_attention_layernorm.weight",),
    "transformer.h.{}.mlp.fc_1.weight": ("model.layers.{}.mlp.gate_proj.weight",),
    "transformer.h.{}.mlp.fc_2.weight": ("model.layers.{}.mlp.up_proj.weight",),
    "transformer.h.{}.mlp.proj.weight": ("model.layers.{}.mlp.down_proj.weight",),
    "transformer.ln_f.weight": ("model.norm.weight",),
    "lm_head.weight": ("lm_head.weight",),
}


class Part(NamedTuple):
    """A Hugging Face tensor as some rows of one of ours."""

    hf_name: str
    rows: slice


def hf_parts(name: str, config: ModelConfig) -> list[Part]:
    """The Hugging Face tensors that our parameter `name` is stacked from, top to bottom.

    Raises:
        KeyError: no parameter of ours has this name.
    """
    layer = next(iter(re.findall(r"(?<=\.h\.)\d+", name)), "")
    hf_names = [template.format(layer) for template in _TABLE[re.sub(r"(?<=\.h\.)\d+", "{}", name)]]
    if len(hf_names) == 1:
        return [Part(hf_names[0], slice(None))]
    keys_from = config.n_head * config.head_dim
    values_from = keys_from + config.n_query_groups * config.head_dim
    rows = [slice(0, keys_from), slice(keys_from, values_from), slice(values_from, config.qkv_rows)]
    return [Part(*pair) for pair in zip(hf_names, rows, strict=True)]
