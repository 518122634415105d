"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lit_gpt.cli import InputError

if TYPE_CHECKING:
    from pretrain.options import TrainOptions

ScheduleName = Literal["cosine", "wsd", "linear", "constant"]

DEFAULT_STEPS = 1000
MAX_DEFAULT_WARMUP = 2000


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then a shape.

    Attributes:
        peak: Learning rate at the end of the warm-up.
        final: Learning rate at `max_steps`.
        max_steps: Length of the run, or of a stage of it.
        decay_steps: wsd (warmup-stable-decay, Hu et al. 2024, arXiv:2404.06395) only: length of the last
            phase. The decay can begin at any checkpoint of a stable phase: resume it with
            max_steps = its step + decay_steps.
        steps_before: Steps of the stages before.
        initial: Learning rate at which the warm-up begins, the last one of the stage before.
    """

    name: ScheduleName
    peak: float
    final: float
    warmup_steps: int
    max_steps: int
    decay_steps: int = 0
    steps_before: int = 0
    initial: float = 0.0

    @property
    def last_step(self) -> int:
        """Of the run's steps the last one on this schedule."""
        return self.steps_before + self.max_steps

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step of the run, counted from 1. After the last it stays as it is."""
        step -= self.steps_before
        if step <= self.warmup_steps:
            return self.initial + (self.peak - self.initial) * step / self.warmup_steps
        start = self.max_steps - self.decay_steps if self.name == "wsd" else self.warmup_steps
        progress = min(max((step - start) / max(self.max_steps - start, 1), 0.0), 1.0)
        return self.final + (self.peak - self.final) * _SHAPES[self.name](progress)

    def describe(self, options: "TrainOptions") -> str:
        """What is done over the run, for its first lines, and which explicit warm-up was too long for it."""
        given = options.warmup_steps
        shortened = "" if given in (None, self.warmup_steps) else f" (not {given:,}: the run is shorter)"
        after = self.name if self.name == "constant" else f"{self.name} to {self.final:g}"
        start = f" from {self.initial:g}" if self.initial and self.warmup_steps else ""
        return (
            f"learning rate: {self.warmup_steps:,} steps of warm-up{shortened}{start} to {self.peak:g}, "
            f"then {after}"
        )

    def as_options(self) -> dict[str, int | float]:
        """The trainer's options whose values it decides."""
        return {"max_steps": self.max_steps, "warmup_steps": self.warmup_steps, "min_lr": self.final}


def keep_schedule(options: "TrainOptions", before: Mapping[str, Any]) -> "TrainOptions":
    """The options of a resumed run: what they leave open of its schedule stays as it was.

    Args:
        before: Options in the checkpoint.

    Raises:
        InputError: what stays does not fit what is given anew.
    """
    open_names = [name for name in ("warmup_steps", "min_lr") if getattr(options, name) is None]
    if options.max_steps is None and options.max_epochs is None:
        open_names.append("max_steps" if before.get("max_epochs") is None else "max_epochs")
    values: dict[str, Any] = {name: before.get(name) for name in open_names}
    kept = dataclasses.replace(options, **values)
    kept.check()
    return kept


def make_schedule(options: "TrainOptions", rows_per_epoch: int | None) -> Schedule:
    """The schedule that options ask for; what they leave open follows from the number of steps.

    An explicit warm-up that is longer than the run (of a configuration whose run was shortened by a
    flag) is replaced by the default one.

    Args:
        rows_per_epoch: Rows of all stores; None where they are not known yet, and then `max_epochs` counts
            as the default number of steps.

    Raises:
        InputError: the parts do not fit one another.
    """
    max_steps = options.max_steps or DEFAULT_STEPS
    if options.max_epochs is not None and rows_per_epoch is not None:
        # Rounded up, so that every row is read; the inner rounding takes away what 0.1 has too much.
        max_steps = math.ceil(round(options.max_epochs * rows_per_epoch / options.global_batch_size, 6))
    warmup = options.warmup_steps
    if warmup is None or warmup > max_steps:
        warmup = min(max_steps // 10, MAX_DEFAULT_WARMUP)
    final = options.learning_rate / 10 if options.min_lr is None else options.min_lr
    if final > options.learning_rate:
        raise InputError(f"--min_lr {final} is above --learning_rate {options.learning_rate}")
    decay = options.decay_steps or max(max_steps // 10, 1)
    known = options.max_epochs is None or rows_per_epoch is not None
    if options.decay_steps is not None and known and decay > max_steps - warmup:
        raise InputError(
            f"--decay_steps {decay} is more than the {max_steps - warmup} steps after the warm-up"
        )
    return Schedule(options.lr_schedule, options.learning_rate, final, warmup, max_steps, decay)


_SHAPES: dict[ScheduleName, Callable[[float], float]] = {
    # progress of the decay in [0, 1] -> share of the way from final (0) to peak (1)
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "wsd": lambda progress: 1.0 - progress,
    "constant": lambda progress: 1.0,
}
