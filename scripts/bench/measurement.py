"""Measure alternatives in turns, and the speed of training by some real steps in a process of their own."""

import dataclasses
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from lit_gpt.cli import EXIT_BAD_INPUT, InputError, progress
from lit_gpt.errors import OUT_OF_MEMORY
from pretrain.options import TrainOptions

COMMAND = Path(__file__).with_name("measure_step.py")
STEPS = 14
TIME_LIMIT = "00:01:30"
MICRO_BATCHES = 4  # a step of more takes as long for each of them

Name = TypeVar("Name")
Figure = TypeVar("Figure")


def in_turns(
    alternatives: Mapping[Name, Callable[[], Figure]], rounds: int, show_progress: bool = False
) -> dict[Name, list[Figure]]:
    """Call every function once per round and collect what each returns; compare the medians.

    Whatever else the machine does then disturbs all of them alike. The order changes from round to round,
    the same way in every call: in one process, the predecessor changes a turn by several per cent.
    """
    draw = random.Random(0)
    order = [name for _ in range(rounds) for name in draw.sample(list(alternatives), len(alternatives))]
    figures: dict[Name, list[Figure]] = {name: [] for name in alternatives}
    for name in progress(order, description="turns", unit="turn") if show_progress else order:
        figures[name].append(alternatives[name]())
    return figures


@dataclass(frozen=True)
class Measurement:
    """Timed steps of one device."""

    seconds: list[float]
    """Of each step after the warm-up."""
    slots: float
    """Tokens of a step's rows on one device."""
    peak_bytes: int
    """Memory reserved on the device; on a CPU resident in the process."""
    device: str

    @property
    def tokens_per_second(self) -> float:
        """Of the median step."""
        return self.slots / statistics.median(self.seconds)

    def describe(self) -> str:
        """The figures in words."""
        return (
            f"{self.tokens_per_second:,.0f} tokens/s on {self.device}, measured over {len(self.seconds)} "
            f"step(s), peak memory {self.peak_bytes / 2**30:.1f} GiB"
        )


class NotMeasured(InputError):
    """The step does not run here. The message says why."""


def run_steps(options: TrainOptions, *flags: str, show_errors: bool = False) -> Measurement:
    """Run `max_steps` steps in a process of their own, which writes nothing that stays.

    Args:
        flags: Further options of measure_step.py.
        show_errors: Let its standard error through.

    Raises:
        InputError: the options cannot be used.
        NotMeasured: the run failed, for want of memory for example.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = [field.name for field in dataclasses.fields(TrainOptions)]
        given = {name: getattr(options, name) for name in names} | {"out_dir": f"{folder}/run"}
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(given))
        done = subprocess.run(
            [sys.executable, str(COMMAND), "--config", str(config), *flags],
            stdout=subprocess.PIPE,
            stderr=None if show_errors else subprocess.PIPE,
            text=True,
        )
    if done.returncode == 0:
        return Measurement(**json.loads(done.stdout.strip().splitlines()[-1]))
    lines = (done.stderr or "").strip().splitlines()
    reason = lines[-1].removeprefix("error: ") if lines else "see above" if show_errors else "no message"
    if done.returncode == EXIT_BAD_INPUT and not reason.startswith(OUT_OF_MEMORY):
        raise InputError(reason)
    raise NotMeasured(f"the training step did not run here: {reason}")


def measure(options: TrainOptions) -> Measurement:
    """Train as `options` say, but on this machine and for a minute and a half at most.

    Packs the data first if that has not been done, as the training itself would.

    Raises:
        InputError: the options cannot be used.
        NotMeasured: the run failed, for want of memory for example.
    """
    rows = options.micro_batch_size * options.devices * MICRO_BATCHES
    short = dataclasses.replace(
        options,
        val_data_dir=None,
        initial_checkpoint_dir=None,
        rope_scaling=None,  # as fast, and what it takes from the initial checkpoint is not there
        resume=None,
        num_nodes=1,
        global_batch_size=min(rows, options.global_batch_size),
        max_steps=STEPS,
        max_epochs=None,
        decay_steps=None,
        save_step_interval=0,
        log_step_interval=STEPS,
        wandb_project=None,
        max_time=TIME_LIMIT,
        watchdog_minutes=0.0,
    )
    return run_steps(short)
