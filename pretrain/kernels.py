"""Which kernels a run uses: attention, compiled blocks, float8."""

import importlib.util
from typing import TYPE_CHECKING

import torch

from lit_gpt.cli import InputError
from lit_gpt.model.attention import choose_attention
from lit_gpt.model.gpt import GPT

if TYPE_CHECKING:
    from pretrain.options import TrainOptions

FLOAT8_RECIPE = "tensorwise"


def choose_kernels(options: "TrainOptions", device: torch.device, precision: str, head_dim: int) -> list[str]:
    """Choose what works here.

    Args:
        precision: With `auto` resolved.

    Returns:
        Lines that say what was chosen, and why.

    Raises:
        InputError: what the options ask for cannot work here.
    """
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    attention, reason = choose_attention(options.attention, device, dtype, head_dim)
    if options.float8:
        check_float8(device)
    lines = [
        f"{options.world_size} process(es) on {device.type}, {precision}, "
        f"{options.sharding_strategy if options.sharded else 'not sharded'}, "
        f"{'compiled' if is_compiled(options, device.type) else 'not compiled'}",
        f"attention: {attention} ({reason})",
    ]
    if precision == "bf16-true":
        lines.append("warning: bf16-true keeps weights and Adam's moments in bf16")
    return lines


def is_compiled(options: "TrainOptions", device_type: str) -> bool:
    """Whether blocks are compiled: `--compile auto` means on CUDA."""
    return options.compile == "true" or (options.compile == "auto" and device_type == "cuda")


def check_float8(device: torch.device) -> None:
    """Check that float8 can be used.

    Raises:
        InputError: torchao is missing or the device has no float8 matrix products.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise InputError("--float8 needs a CUDA device of compute capability 8.9 or later; leave it out here")
    if importlib.util.find_spec("torchao") is None:
        raise InputError("--float8 needs the package torchao: pip install torchao==0.18.0")


def use_float8(model: GPT) -> None:
    """Replace the blocks' linear layers by torchao's float8 ones; lm_head keeps its precision."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(model.transformer.h, config=Float8LinearConfig.from_recipe_name(FLOAT8_RECIPE))
