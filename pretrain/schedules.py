"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["cosine", "wsd", "linear", "constant"]


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then a shape.

    Attributes:
        peak: Learning rate at the end of the warm-up.
        final: Learning rate at `max_steps`.
        decay_steps: wsd (warmup-stable-decay, Hu et al. 2024, arXiv:2404.06395) only: length of the last
            phase. The decay can begin at any checkpoint of a stable phase: resume it with
            max_steps = its step + decay_steps.
    """

    name: ScheduleName
    peak: float
    final: float
    warmup_steps: int
    max_steps: int
    decay_steps: int = 0

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 1. After max_steps it stays at its last value."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        start = self.max_steps - self.decay_steps if self.name == "wsd" else self.warmup_steps
        progress = min(max((step - start) / max(self.max_steps - start, 1), 0.0), 1.0)
        return self.final + (self.peak - self.final) * _SHAPES[self.name](progress)


_SHAPES: dict[ScheduleName, Callable[[float], float]] = {
    # progress of the decay in [0, 1] -> share of the way from final (0) to peak (1)
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "wsd": lambda progress: 1.0 - progress,
    "constant": lambda progress: 1.0,
}
