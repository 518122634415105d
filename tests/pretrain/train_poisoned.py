"""The training command with faults: a loss that is not a number, a hang, a clock set back, a slow disk."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pretrain.checkpoint import writer
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.monitor.step_reporter import TrainingDiverged
from pretrain.options import TrainOptions
from pretrain.trainer import Trainer


@dataclass
class PoisonedOptions(TrainOptions):
    """Train, with a fault."""

    poisoned_rank: int = 1
    first_poisoned_step: int = 7
    last_poisoned_step: int = 8
    hanging_step: int = 0
    clock_back_step: int = 0
    slow_save_seconds: float = 0.0


def main(options: PoisonedOptions) -> None:
    trainer = Trainer(options, watchdog)

    now, write_checkpoint = time.time, writer.write_checkpoint

    def write_slowly(*arguments):
        time.sleep(options.slow_save_seconds)
        write_checkpoint(*arguments)

    writer.write_checkpoint = write_slowly

    def poison(module, inputs, losses):
        if trainer.step + 1 == options.hanging_step:
            time.sleep(1000)
        if trainer.step + 1 == options.clock_back_step:
            time.time = lambda: now() - 3600
        coming = range(options.first_poisoned_step, options.last_poisoned_step + 1)
        hit = trainer.rank == options.poisoned_rank and trainer.step + 1 in coming and module.training
        return (losses[0] * float("nan"), losses[1]) if hit else losses

    trainer.model.register_forward_hook(poison)
    try:
        trainer.fit()
    except TrainingDiverged as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    watchdog = Watchdog(StopRequest().install())
    watchdog.run(PoisonedOptions, main)
