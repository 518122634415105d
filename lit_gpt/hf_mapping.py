"""One table of names and layouts, lit <-> Hugging Face Llama, read in both directions.

A tensor of ours is one or more Hugging Face tensors, stacked along the rows. RoPE turns the same pairs on
both sides, so nothing is permuted.
"""

import copy
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
        InputError: something that this model does not do; the message names the key.
    """
    _refuse_unsupported(hf)
    fields = {lit: hf[key] for lit, key in _HF_FIELDS.items() if hf.get(key) is not None}
    head_size = fields.pop("head_dim", None)
    fields.setdefault("n_query_groups", fields.get("n_head"))
    rope = {**(hf.get("rope_scaling") or hf.get("rope_parameters") or {})}
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    if (base := rope.pop("rope_theta", None)) is not None:
        fields["rope_base"] = base
    if rope["rope_type"] in ("llama3", "yarn"):
        original = hf.get("original_max_position_embeddings") or hf.get("max_position_embeddings")
        rope.setdefault("original_max_position_embeddings", original)
    fields["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if head_size is not None and head_size * fields["n_head"] != fields["n_embd"]:
        fields["head_size"] = head_size
    return ModelConfig.from_dict({"name": name, **fields}, origin=name)


def _refuse_unsupported(hf: dict[str, Any]) -> None:
    supported = {
        "model_type": ("llama", "mistral"),
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1.0,),
        "quantization_config": (),
    }
    for key, values in supported.items():
        if hf.get(key) is not None and hf[key] not in values:
            wanted = " or ".join(map(repr, values)) or "to be absent"
            raise InputError(f"config.json: {key} is {hf[key]!r}; only {wanted} is supported")
    window = hf.get("sliding_window")
    if window is not None and window < hf["max_position_embeddings"]:
        raise InputError(
            f"config.json: sliding_window {window} is shorter than max_position_embeddings "
            f"{hf['max_position_embeddings']}; windowed attention is not supported"
        )
