"""Shapes and tensors, ours <-> those of a Hugging Face Llama or Mistral.

config.json: the shape that it describes, or what is not supported. Tensors: one table of names and layouts,
read in both directions; one of ours is one or more of theirs, stacked along the rows. RoPE turns the same
pairs on both sides, so nothing is permuted.
"""

import copy
import dataclasses
import re
from typing import Any, NamedTuple

from lit_gpt.cli import InputError
from lit_gpt.model.config import ModelConfig

_FIELDS = {
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
_WRITTEN: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
}
# Values of missing keys, by model_type: the defaults of transformers' classes, 4 and 5 alike.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA
    | {
        "architectures": ["MistralForCausalLM"],
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
}
# Keys whose other values this model does not compute, with what means the same as the default.
_FIXED: dict[str, tuple[Any, ...]] = {
    "architectures": (None, []),
    "hidden_act": (),
    "attention_bias": (None,),
    "mlp_bias": (None,),
    "partial_rotary_factor": (None,),
    "quantization_config": (),
}
_MAY_BE_NULL = ("num_key_value_heads", "head_dim", "rope_scaling")


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """The model's part of config.json, in the words that transformers 4 and 5 both read."""
    fields = {hf: getattr(config, lit) for lit, hf in _FIELDS.items()}
    return copy.deepcopy({**_WRITTEN, **fields})  # transformers writes into what it is given


def from_hf_config(hf: dict[str, Any], name: str) -> ModelConfig:
    """The shape that a config.json (of transformers 4 or 5) describes; what it lacks is as in transformers.

    Raises:
        InputError: a value is not supported; the message names the key.
    """
    defaults = DEFAULTS.get(str(hf.get("model_type")))
    if defaults is None:
        raise _unsupported("model_type", hf.get("model_type"), " or ".join(map(repr, DEFAULTS)))
    stated = defaults | hf
    for key, same in _FIXED.items():
        if stated[key] not in (defaults[key], *same):
            raise _unsupported(key, stated[key], repr(defaults[key]))
    stated |= _rope_keys(hf, stated)
    if nulls := [key for key in _FIELDS.values() if stated[key] is None and key not in _MAY_BE_NULL]:
        raise InputError(f"config.json: {', '.join(nulls)} is null; give a value")
    fields = {lit: stated[key] for lit, key in _FIELDS.items()}
    if fields["n_query_groups"] is None:
        fields["n_query_groups"] = fields["n_head"]
    fields["head_size"] = fields.pop("head_dim")
    config = ModelConfig.from_dict({"name": name, **fields}, origin=name)
    window = stated["sliding_window"]
    if window is not None and not (isinstance(window, int) and window >= config.block_size):
        said = "" if "sliding_window" in hf else ", which transformers takes where config.json has none,"
        raise InputError(
            f"config.json: sliding_window {window}{said} is shorter than max_position_embeddings "
            f"{config.block_size}; windowed attention is not supported"
        )
    usual = config.head_dim * config.n_head == config.n_embd
    return dataclasses.replace(config, head_size=None) if usual else config


def _rope_keys(hf: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling: both in `rope_parameters` (transformers 5) or in `rope_theta`, `rope_scaling` (4)."""
    scaling = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise InputError(f"config.json: rope_scaling is {scaling!r}, not an object")
    scaling = dict(scaling)
    base = scaling.pop("rope_theta", stated["rope_theta"])
    if hf.get("rope_theta", base) != base:
        raise InputError(
            f"config.json: rope_theta is {hf['rope_theta']} and, beside the scaling, {base}; transformers 4 "
            "and 5 differ in which they take: remove one"
        )
    partly = scaling.pop("partial_rotary_factor", None)
    if partly not in (1.0, None):
        raise _unsupported("partial_rotary_factor", partly, "1.0")
    older_word = scaling.pop("type", None)
    kind = scaling["rope_type"] = scaling.get("rope_type") or older_word or "default"
    if kind == "default":
        return {"rope_theta": base, "rope_scaling": None}
    if kind in ("llama3", "yarn"):
        original = "original_max_position_embeddings"  # transformers looks for it in this order
        scaling[original] = hf.get(original) or scaling.get(original) or stated["max_position_embeddings"]
    return {"rope_theta": base, "rope_scaling": scaling}


def _unsupported(key: str, value: Any, wanted: str) -> InputError:
    return InputError(f"config.json: {key} is {value!r}; only {wanted} is supported")


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
