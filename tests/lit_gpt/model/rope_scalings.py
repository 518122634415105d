"""Rotary scalings in transformers' words."""

from typing import Any


def scalings(original: int) -> dict[str, dict[str, Any] | None]:
    """By name; `original` is the length before scaling."""
    return {
        "none": None,
        "linear": {"rope_type": "linear", "factor": 4.0},
        "llama3": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        },
        "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": original},
    }
