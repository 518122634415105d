"""One table of names and layouts, lit <-> Hugging Face Llama, read in both directions.

A tensor of ours is one or more Hugging Face tensors, stacked along the rows. RoPE turns the same pairs on
both sides, so nothing is permuted.
"""

import copy
import dataclasses
import re
from typing import Any, NamedTuple

from lit_gpt.cli import InputError
from lit_gpt.config import ModelConfig

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


_HF_CONSTANTS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}
_HF_FIELDS = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_query_groups": "num_key_value_heads",
    "n_embd": "hidden_size",
    "intermediate_size": "intermediate_size",
    "block_size": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "rope_base": "rope_theta",
    "rope_scaling": "rope_scaling",
    "tie_embeddings": "tie_word_embeddings",
    "head_dim": "head_dim",
}
_HF_REQUIRED = ("n_layer", "n_head", "n_embd", "intermediate_size", "block_size", "vocab_size", "norm_eps")
# Values that this model computes, and what a missing key means.
_HF_SUPPORTED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "model_type": (("llama", "mistral"), None),
    "hidden_act": (("silu",), "silu"),
    "attention_bias": ((False, None), None),
    "mlp_bias": ((False, None), None),
    "partial_rotary_factor": ((1.0, None), None),
    "quantization_config": ((None,), None),
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


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """The model's part of config.json, in the words that transformers 4 and 5 both read."""
    fields = {hf: getattr(config, lit) for lit, hf in _HF_FIELDS.items()}
    return copy.deepcopy({**_HF_CONSTANTS, **fields})  # transformers writes into what it is given


def from_hf_config(hf: dict[str, Any], name: str) -> ModelConfig:
    """The shape that a config.json (of transformers 4 or 5) describes.

    Raises:
        InputError: something is missing, or is nothing that this model does; the message names the key.
    """
    _refuse_unsupported(hf)
    fields = {lit: hf[key] for lit, key in _HF_FIELDS.items() if hf.get(key) is not None}
    if missing := [_HF_FIELDS[lit] for lit in _HF_REQUIRED if lit not in fields]:
        raise InputError(f"config.json: {', '.join(missing)} is missing")
    if hf["model_type"] == "llama":
        fields.setdefault("n_query_groups", fields["n_head"])  # what configurations of the first Llama mean
    fields["head_size"] = fields.pop("head_dim", None)
    config = ModelConfig.from_dict({"name": name, **fields, **_rope_fields(hf)}, origin=name)
    usual = config.head_dim * config.n_head == config.n_embd
    return dataclasses.replace(config, head_size=None) if usual else config


def _rope_fields(hf: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling: both in `rope_parameters` (transformers 5) or in `rope_theta`, `rope_scaling` (4)."""
    scaling = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise InputError(f"config.json: rope_scaling is {scaling!r}, not an object")
    scaling = dict(scaling)
    base = scaling.pop("rope_theta", None) or hf.get("rope_theta") or 10000.0
    scaling["rope_type"] = scaling.pop("type", None) or scaling.get("rope_type") or "default"
    if scaling.pop("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            "config.json: partial_rotary_factor is not 1; partly rotated heads do not exist here"
        )
    if scaling["rope_type"] == "default":
        return {"rope_base": base, "rope_scaling": None}
    if scaling["rope_type"] in ("llama3", "yarn"):
        original = "original_max_position_embeddings"  # transformers looks for it in this order
        scaling[original] = hf.get(original) or scaling.get(original) or hf["max_position_embeddings"]
    return {"rope_base": base, "rope_scaling": scaling}


def _refuse_unsupported(hf: dict[str, Any]) -> None:
    for key, (values, default) in _HF_SUPPORTED.items():
        if hf.get(key, default) not in values:
            wanted = " or ".join(repr(value) for value in values)
            raise InputError(f"config.json: {key} is {hf.get(key)!r}; only {wanted} is supported")
    window, longest = hf.get("sliding_window"), hf.get("max_position_embeddings")
    if window is not None and longest is not None and window < longest:
        raise InputError(
            f"config.json: sliding_window {window} is shorter than max_position_embeddings {longest}; "
            "windowed attention is not supported"
        )
