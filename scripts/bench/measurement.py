"""How fast this machine trains a configuration, by a short run of the real step."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from lit_gpt.cli import EXIT_BAD_INPUT, InputError
from pretrain.options import TrainOptions

COMMAND = Path(__file__).with_name("measure_step.py")
STEPS = 14
TIME_LIMIT = "00:01:30"
MICRO_BATCHES = 4  # a step of more takes as long for each of them


@dataclass(frozen=True)
class Measurement:
    """Of one device; tokens are slots of rows."""

    tokens_per_second: float
    steps: int
    """That were timed."""
    peak_bytes: int
    device: str
    parameters: int

    def describe(self) -> str:
        """In words."""
        return (
            f"{self.tokens_per_second:,.0f} tokens/s on {self.device}, measured over {self.steps} step(s), "
            f"peak memory {self.peak_bytes / 2**30:.1f} GiB"
        )


class NotMeasured(InputError):
    """The step does not run here. The message says why."""


def measure(options: TrainOptions) -> Measurement:
    """Train for a minute and a half at most, in a process of its own, as `options` say but on this machine.

    The data is packed first where that has not been done, as the training itself would.

    Raises:
        InputError: the options cannot be used.
        NotMeasured: the run failed, for want of memory for example.
    """
    rows = options.micro_batch_size * options.devices * MICRO_BATCHES
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(
            options,
            out_dir=f"{folder}/run",
            val_data_dir=None,
            initial_checkpoint_dir=None,
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
        config = Path(folder) / "config.yaml"
        names = [field.name for field in dataclasses.fields(TrainOptions)]
        config.write_text(yaml.safe_dump({name: getattr(short, name) for name in names}))
        command = [sys.executable, str(COMMAND), "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return Measurement(**json.loads(done.stdout.strip().splitlines()[-1]))
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
    if done.returncode == EXIT_BAD_INPUT:
        raise InputError(reason)
    raise NotMeasured(f"the training step did not run here: {reason}")
