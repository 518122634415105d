"""A small run of three stages: other data, lengths, batches and rates; the second keeps the moments."""

from pathlib import Path
from typing import Any

STEPS = (4, 3, 3)
BORDERS = (4, 7)
LAST_STEP = 10


def three_stages(train: Path, val: Path, chat: Path) -> list[dict[str, Any]]:
    """`adapt` mixes two stores, `long` has longer rows, `chat` continues a store of `adapt` and tunes."""
    return [
        {
            "name": "adapt",
            "steps": STEPS[0],
            "train_data_dir": [f"{train}:1", f"{val}:3"],
            "block_size": 64,
            "warmup_steps": 2,
        },
        {
            "name": "long",
            "steps": STEPS[1],
            "train_data_dir": [str(train)],
            "block_size": 128,
            "global_batch_size": 8,
            "learning_rate": 1e-2,
            "lr_schedule": "linear",
            "weight_decay": 0.0,
            "beta2": 0.99,
        },
        {
            "name": "chat",
            "steps": STEPS[2],
            "train_data_dir": [f"{val}:1", f"{chat}:2"],
            "block_size": 64,
            "global_batch_size": 2,
            "lr_schedule": "constant",
            "warmup_steps": 0,
            "optimizer": "fresh",
        },
    ]


RUN: dict[str, Any] = {"max_steps": None, "warmup_steps": None, "keep_last": 1, "save_step_interval": 1}
"""Options of the run beside those of `tests.pretrain.running.SMALL`."""
