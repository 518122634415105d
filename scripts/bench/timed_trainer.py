"""The trainer with a clock, for commands that measure a step."""

import time

import torch

from pretrain.data.dataloader import StepBatch
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.options import TrainOptions
from pretrain.trainer import Trainer


class TimedTrainer(Trainer):
    """Notes when each step ends; saves nothing, since a checkpoint is no part of a step."""

    def __init__(self, options: TrainOptions) -> None:
        super().__init__(options, Watchdog(StopRequest()))
        self.ends = [time.perf_counter()]

    def save_checkpoint(self) -> None:
        """Write nothing."""

    def train_step(self, batch: StepBatch, waited: float) -> bool:
        """Wait for the device after each step."""
        done = super().train_step(batch, waited)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        return done
