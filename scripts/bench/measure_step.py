#!/usr/bin/env python
"""Time the training step of a configuration; prints its figures as one JSON line.

    python scripts/bench/measure_step.py --config CONFIG --train_data_dir DIR --out_dir NEW

Takes the trainer's options. It trains max_steps steps, or until max_time, and writes no checkpoint.
scripts/submit.py --measure and scripts/choose_config.py call it.
"""

import itertools
import json
import resource
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from lit_gpt.cli import run_command
from pretrain.options import TrainOptions
from scripts.bench.timed_trainer import TimedTrainer

WARMUP = 2  # steps that compile, or touch memory for the first time


@dataclass
class MeasureOptions(TrainOptions):
    """Time the training step of a configuration; prints its figures as one JSON line.

    Takes the trainer's options. It trains max_steps steps, or until max_time, and writes no checkpoint.
    """


def main(options: MeasureOptions) -> None:
    """Train a few steps; rank 0 prints."""
    options.check()
    trainer = TimedTrainer(options)
    trainer.fit()
    seconds = [end - begin for begin, end in itertools.pairwise(trainer.ends)]
    timed = seconds[WARMUP:] or seconds[-1:]
    if trainer.device.type == "cuda":
        device, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_reserved()
    else:
        device, peak = "CPU", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slots = options.global_batch_size * trainer.config.block_size / options.world_size
    figures = {
        "tokens_per_second": slots / statistics.median(timed),
        "steps": len(timed),
        "peak_bytes": peak,
        "device": f"{device}, {torch.get_num_threads()} thread(s)" if device == "CPU" else device,
        "parameters": trainer.config.n_parameters,
    }
    if trainer.rank == 0:
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    run_command(MeasureOptions, main)
