#!/usr/bin/env python
"""Pretrain: token store to checkpoints.

    python pretrain/tinyllama_fabric.py --config pretrain/configs/debug_cpu.yaml \
        --train_data_dir data/train --val_data_dir data/val --out_dir out/debug [--resume auto]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.monitor.save_errors import keep_output_from_failing
from pretrain.options import TrainOptions
from pretrain.stages.options import resolve_stages


def main(options: TrainOptions) -> None:
    """Check, build, train."""
    resolve_stages(options)
    # Imports torch, which takes seconds: bad options are refused before, and signals are remembered.
    from pretrain.monitor.step_reporter import TrainingDiverged
    from pretrain.trainer import Trainer

    try:
        Trainer(options, watchdog).fit()
    except TrainingDiverged as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    keep_output_from_failing()
    watchdog = Watchdog(StopRequest().install())
    watchdog.run(TrainOptions, main)
