#!/usr/bin/env python
"""Time the training step of a configuration or of an alternative; prints its figures as one JSON line.

    python scripts/bench/measure_step.py --config CONFIG --train_data_dir DIR --out_dir NEW

`measurement.run_steps` calls it, for scripts/bench_step.py, submit.py --measure and choose_config.py.
"""

import dataclasses
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from lit_gpt.cli import InputError, run_command
from lit_gpt.option_types import NonNegativeInt
from pretrain.data.dataloader import StepBatch
from pretrain.data.inputs import open_inputs
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.options import TrainOptions
from pretrain.trainer import Trainer
from scripts.bench.step_variants import OTHERS, SWITCHES


@dataclass
class MeasureOptions(TrainOptions):
    """Time training steps; prints the figures as one JSON line.

    Takes the trainer's options. It trains max_steps steps, or until max_time, and writes no checkpoint.
    """

    variant: str = "ours"
    """What to time, of scripts/bench/step_variants.py; ours is this project's trainer as it is."""
    untimed_steps: NonNegativeInt = 2
    """First steps, which compile and touch memory for the first time."""
    profile: bool = False
    """Print the time of kernels by group to standard error (trainer only)."""


class TimedTrainer(Trainer):
    """Notes when each step ends; saves nothing, since a checkpoint is no part of a step."""

    def __init__(self, options: TrainOptions, profiler: torch.profiler.profile | None) -> None:
        super().__init__(options, Watchdog(StopRequest()))
        self.profiler = profiler
        self.ends = [time.perf_counter()]

    def save_checkpoint(self) -> None:
        """Write nothing."""

    def train_step(self, batch: StepBatch, waited: float) -> bool:
        """Wait for the device after each step."""
        complete = super().train_step(batch, waited)
        _synchronize()
        self.ends.append(time.perf_counter())
        if self.profiler is not None:
            self.profiler.step()
        return complete


def main(options: MeasureOptions) -> None:
    """Run the variant; rank 0 prints."""
    options.check()
    if options.variant in SWITCHES:
        seconds = time_trainer(options)
    elif options.variant in OTHERS:
        torch.manual_seed(0)
        seconds = time_steps(OTHERS[options.variant](options), options.max_steps or 0)
    else:
        raise InputError(f"--variant {options.variant}: unknown; known: {', '.join([*SWITCHES, *OTHERS])}")
    if not seconds:
        return
    if torch.cuda.is_available() and options.accelerator != "cpu":
        device, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_reserved()
    else:
        device = f"CPU, {torch.get_num_threads()} thread(s)"
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "seconds": seconds[options.untimed_steps :] or seconds[-1:],
        "slots": options.global_batch_size * open_inputs(options).config.block_size / options.world_size,
        "peak_bytes": peak,
        "device": device,
    }
    print(json.dumps(figures), flush=True)


def time_trainer(options: MeasureOptions) -> list[float]:
    """Seconds of each step of the trainer, with data engine and log; empty on ranks other than 0."""
    switch = SWITCHES[options.variant]
    switch.apply()
    names = [field.name for field in dataclasses.fields(TrainOptions)]
    train = TrainOptions(**{name: getattr(options, name) for name in names} | switch.options)
    train.check()
    profiler = _profiler(options) if options.profile else None
    trainer = TimedTrainer(train, profiler)
    with profiler or nullcontext():
        trainer.fit()
    if profiler is not None:
        print_groups(profiler, len(trainer.ends) - 1 - options.untimed_steps)
    return [after - before for before, after in itertools.pairwise(trainer.ends)] if trainer.rank == 0 else []


def time_steps(step: Callable[[], None], n_steps: int) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for _ in range(n_steps):
        _synchronize()
        began = time.perf_counter()
        step()
        _synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def _profiler(options: MeasureOptions) -> torch.profiler.profile:
    """Profiles the timed steps; the last of the others is its own warm-up."""
    activity = torch.profiler.ProfilerActivity
    last = min(options.untimed_steps, 1)
    active = (options.max_steps or 0) - options.untimed_steps
    return torch.profiler.profile(
        activities=[activity.CUDA if torch.cuda.is_available() else activity.CPU],
        schedule=torch.profiler.schedule(
            wait=options.untimed_steps - last, warmup=last, active=active, repeat=1
        ),
    )


GROUPS = (
    ("attention", ("flash", "fmha", "sdpa", "attention", "varlen")),
    (
        "matrix products",
        ("gemm", "nvjet", "cutlass", "xmma", "aten::mm", "aten::addmm", "aten::bmm", "cublas"),
    ),
    ("optimizer and norm", ("adam", "multi_tensor", "_foreach", "norm_kernel")),
    ("copies", ("memcpy", "memset", "copy_", "aten::to")),
    ("fused elementwise", ("triton",)),
)


def print_groups(profiler: torch.profiler.profile, n_steps: int) -> None:
    """Print milliseconds a step by group of kernels, on the device if there is one."""
    totals: dict[str, float] = {}
    for event in profiler.key_averages():
        duration = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        name = event.key.lower()
        group = next((group for group, parts in GROUPS if any(part in name for part in parts)), "other")
        totals[group] = totals.get(group, 0.0) + duration / 1000 / n_steps
    total = sum(totals.values()) or 1.0
    for group, milliseconds in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"{group:24s} {milliseconds:9.2f} ms a step  {milliseconds / total:6.1%}", file=sys.stderr)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    run_command(MeasureOptions, main)
