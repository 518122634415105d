"""Rotary position embedding (rotate-half form) with the scalings that `transformers` defines.

Shape suffixes: N = tokens, H = heads, D = head width, F = D / 2 frequencies.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_gpt.cli import InputError
from lit_gpt.model.config import ModelConfig

ORIGINAL_LENGTH = "original_max_position_embeddings"


def inverse_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Angular step of each frequency in radians per position (F,), fp32, and the factor on cos and sin.

    Computed in fp32 as `transformers` does, so that the angles are the same bit for bit.

    Raises:
        InputError: a scaling that is unknown or lacks a parameter.
    """
    width = config.head_dim
    wavelengths = config.rope_base ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", "default")
    if kind not in _SCALINGS:
        raise InputError(f"rope_scaling: rope_type {kind!r} is unknown; known: {', '.join(_SCALINGS)}")
    try:
        return _SCALINGS[kind](wavelengths, scaling, config)
    except KeyError as error:
        raise InputError(f"rope_scaling: {kind} needs {error.args[0]}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        given = ", ".join(f"{name}: {value}" for name, value in scaling.items() if name != "rope_type")
        raise InputError(f"rope_scaling: {kind} cannot be computed with {given}") from error


def complete_scaling(given: dict[str, Any], original: int | None) -> dict[str, Any] | None:
    """A scaling as a user wrote it, as a model holds it: None for none, factors as the floats they are.

    Args:
        original: Length that the weights were trained at without scaling, for where it is not given.

    Raises:
        InputError: a parameter that its type does not have: it would be ignored.
    """
    kind = str(given.get("rope_type"))
    if kind not in _PARAMETERS:
        raise InputError(f"rope_scaling: rope_type {kind} is unknown; known: {', '.join(_PARAMETERS)}")
    if unknown := given.keys() - {"rope_type", *_PARAMETERS[kind]}:
        known = ", ".join(_PARAMETERS[kind]) or "nothing"
        raise InputError(f"rope_scaling: {kind} has no {sorted(unknown)[0]}; it has {known}")
    if kind == "default":
        return None
    floats = {name: float(value) for name, value in given.items() if type(value) is int and "factor" in name}
    if ORIGINAL_LENGTH in _PARAMETERS[kind] and original is not None:
        return {ORIGINAL_LENGTH: original} | given | floats
    return given | floats


def check_scaling(config: ModelConfig) -> None:
    """Try the scaling.

    Raises:
        InputError: it is unknown, lacks a parameter, or gives angles that are no angles.
    """
    if config.rope_scaling and "rope_type" not in config.rope_scaling:
        raise InputError(f"rope_scaling: {config.rope_scaling} has no rope_type")
    frequencies, factor = inverse_frequencies(config)
    if not (torch.isfinite(frequencies) & (frequencies > 0)).all() or not math.isfinite(factor):
        raise InputError(f"rope_scaling: {config.rope_scaling} gives angles that are not positive numbers")


def original_length(config: ModelConfig) -> int | None:
    """Length that a model was trained at before its RoPE was scaled; None where that is not known."""
    scaling = config.rope_scaling or {}
    return scaling.get(ORIGINAL_LENGTH, None if scaling else config.block_size)


def rotary_tables(frequencies: Tensor, factor: float, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin) for positions (N,): two fp32 tensors (N, 1, D), the same for all heads."""
    angles = positions[:, None, None].to(torch.float32) * frequencies
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_NHD: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turns the pair (x[d], x[d + F]) of every head by its position's angle; keeps the dtype."""
    low, high = x_NHD.chunk(2, dim=-1)
    swapped = torch.cat((high, low), dim=-1)  # not roll, which compiles to scalar 16-bit loads
    return torch.addcmul(x_NHD * cos, swapped, signed_sin).to(x_NHD.dtype)


def _default(wavelengths: Tensor, scaling: dict[str, Any], config: ModelConfig) -> tuple[Tensor, float]:
    return 1.0 / wavelengths, 1.0


def _linear(wavelengths: Tensor, scaling: dict[str, Any], config: ModelConfig) -> tuple[Tensor, float]:
    """Position interpolation (Chen et al. 2023): every angle divided by one factor."""
    return (1.0 / wavelengths) / scaling["factor"], 1.0


def _llama3(wavelengths: Tensor, scaling: dict[str, Any], config: ModelConfig) -> tuple[Tensor, float]:
    """Llama 3.1: long waves are divided by the factor, short ones kept, those between blended."""
    frequencies = 1.0 / wavelengths
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factor, original = scaling["factor"], scaling[ORIGINAL_LENGTH]
    lengths = 2 * math.pi / frequencies
    share_kept = (original / lengths - low) / (high - low)
    blended = (1 - share_kept) * frequencies / factor + share_kept * frequencies
    scaled = torch.where(lengths > original / low, frequencies / factor, blended)
    return torch.where(lengths < original / high, frequencies, scaled), 1.0


def _yarn(wavelengths: Tensor, scaling: dict[str, Any], config: ModelConfig) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023): interpolation by parts, and a temperature on the attention."""
    factor, original = scaling["factor"], scaling[ORIGINAL_LENGTH]
    width = config.head_dim

    def dimension_with(rotations: float) -> float:
        return width * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_base))

    low = dimension_with(scaling.get("beta_fast") or 32)
    high = dimension_with(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 if low == high else 0
    interpolated = ((torch.arange(width // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(
        0, 1
    )
    kept = 1 - interpolated
    frequencies = 1.0 / (factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
    return frequencies, _yarn_attention_factor(scaling)


def _yarn_attention_factor(scaling: dict[str, Any]) -> float:
    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    if (given := scaling.get("attention_factor")) is not None:
        return float(given)
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return temperature(scaling["mscale"]) / temperature(scaling["mscale_all_dim"])
    return temperature(1.0)


_SCALINGS: dict[str, Callable[[Tensor, dict[str, Any], ModelConfig], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL_LENGTH),
    "yarn": (
        *("factor", ORIGINAL_LENGTH, "beta_fast", "beta_slow", "truncate"),
        *("attention_factor", "mscale", "mscale_all_dim"),
    ),
}
