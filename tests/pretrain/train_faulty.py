"""The training command with a fault, which the variable FAULT names.

KIND:POINT:RANK, on one rank, before the point: `refuse` raises InputError, `raise` RuntimeError, `wait` is
busy for long. A point is a function of the trainer, or `options`, which are checked before torch is imported.
`slow:train:STEP`, `slow:eval:STEP`, on all ranks: after that step each forward pass of training or validation
takes seconds.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lit_gpt.cli import InputError
from pretrain import tinyllama_fabric
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.options import TrainOptions


def inject(kind: str, point: str, fault_rank: int) -> None:
    """Put the fault before the point."""
    if point == "options":
        owner, name = TrainOptions, "check"
    else:
        from pretrain import run, trainer

        owner, name = (run, point) if hasattr(run, point) else (trainer.Trainer, point)
    original = getattr(owner, name)

    def faulty(*arguments: object, **options: object) -> object:
        if watchdog.launch.rank == fault_rank:
            print(f"fault before {point}", flush=True)
            if kind == "refuse":
                raise InputError("this rank has met bad input: fix it")
            if kind == "raise":
                raise RuntimeError("a bug")
            time.sleep(600)
        return original(*arguments, **options)

    setattr(owner, name, faulty)


def slow_down(mode: str, after_step: int) -> None:
    """Make forward passes take seconds."""
    from pretrain.trainer import Trainer

    build = Trainer._build_model

    def built(trainer: Trainer) -> None:
        def delay(module: object, inputs: object) -> None:
            if trainer.step >= after_step and trainer.model.training == (mode == "train"):
                print("slow pass", flush=True)
                time.sleep(3)

        build(trainer)
        trainer.model.register_forward_pre_hook(delay)

    Trainer._build_model = built


def main(options: TrainOptions) -> None:
    if kind == "slow":
        slow_down(point, int(rank))
    elif point != "options":
        inject(kind, point, int(rank))
    tinyllama_fabric.main(options)


if __name__ == "__main__":
    kind, point, rank = os.environ["FAULT"].split(":")
    watchdog = tinyllama_fabric.watchdog = Watchdog(StopRequest().install())
    if point == "options":
        inject(kind, point, int(rank))
    watchdog.run(TrainOptions, main)
