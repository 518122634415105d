"""The shape that a run trains: that of `model_name`, with rows and RoPE of the options.

It is compared with the shape of the weights that training starts from: those of an initial checkpoint or, in
a later stage, of the stage before. Only the length of rows and RoPE may change.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from lit_gpt.checkpoint.folder import list_checkpoints
from lit_gpt.errors import InputError
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.rope import ORIGINAL_LENGTH, check_scaling, complete_scaling, original_length
from pretrain.options import TrainOptions

_SAME = (
    *("n_layer", "n_head", "n_query_groups", "n_embd", "intermediate_size", "head_dim", "vocab_size"),
    *("norm_eps", "tie_embeddings"),
)


def resolve_shape(options: TrainOptions, before: ModelConfig | None) -> ModelConfig:
    """The shape with the options' block_size, rope_base and rope_scaling; what these leave open is filled in.

    Args:
        before: Shape of the weights to start from; None where they are drawn.

    Raises:
        InputError: no such shape, wrong parameters of RoPE, or it contradicts `before`.
    """
    given = {name: getattr(options, name) for name in ("block_size", "rope_base", "rope_scaling")}
    given = {name: value for name, value in given.items() if value is not None}
    if "rope_scaling" in given:
        original = original_length(before) if before else None
        given["rope_scaling"] = complete_scaling(given["rope_scaling"], original)
    shape = ModelConfig.load(options.model_name, **given)
    check_scaling(shape)
    if before and (contradictions := list(_contradictions(options, shape, before))):
        raise InputError(f"the weights to start from are of another model: {'; '.join(contradictions)}")
    return shape


def initial_shape(options: TrainOptions) -> ModelConfig | None:
    """The shape of the initial checkpoint; None without one, or where a run that exists has outlived it.

    Raises:
        InputError: the folder is missing or no checkpoint.
    """
    folder = options.initial_checkpoint_dir
    if folder is None:
        return None
    if not os.path.isdir(folder):
        if options.resume and list_checkpoints(Path(options.out_dir)):
            return None
        raise InputError(f"--initial_checkpoint_dir {folder}: no such folder")
    return ModelConfig.load(Path(folder).absolute())


def length_warnings(shape: ModelConfig, before: ModelConfig | None) -> list[str]:
    """For the start: rows that are longer than what RoPE was scaled to."""
    scaling = shape.rope_scaling or {}
    original = scaling.get(ORIGINAL_LENGTH) or (original_length(before) if before else None)
    factor = scaling.get("factor")
    if factor is None or original is None or shape.block_size <= factor * original:
        return []
    return [
        f"warning: rows of {shape.block_size} are longer than RoPE is scaled to: {factor:g} x {original}, "
        "the length before; raise the factor or lower --block_size"
    ]


def _contradictions(options: TrainOptions, shape: ModelConfig, before: ModelConfig) -> Iterator[str]:
    name = options.model_name
    for field in _SAME:
        if (new := getattr(shape, field)) not in (None, old := getattr(before, field)):
            yield f"{field} is {old} there and {new} in --model_name {name}"
    if before.rope_base != shape.rope_base and options.rope_base is None:
        yield (
            f"rope_base is {before.rope_base:g} there and {shape.rope_base:g} in --model_name {name}; give "
            f"--rope_base {before.rope_base:g}, or another to change it"
        )
    old, new = before.rope_scaling or {}, shape.rope_scaling or {}
    old_type, new_type = (scaling.get("rope_type", "default") for scaling in (old, new))
    original = original_length(before)
    if old_type not in ("default", new_type):
        flag = ", ".join(f"{key}: {value}" for key, value in old.items())
        yield f"RoPE is scaled by {old_type} there and {new_type} here; give --rope_scaling '{{{flag}}}'"
    elif new.get(ORIGINAL_LENGTH, original) != original:
        yield (
            f"they were trained on {original} positions without scaling, but {ORIGINAL_LENGTH} is "
            f"{new[ORIGINAL_LENGTH]}; leave it out of rope_scaling"
        )
