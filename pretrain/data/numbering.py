"""Which samples an optimizer step takes. Both are counted over the whole run, across its stages."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Number = TypeVar("Number", int, np.ndarray)


@dataclass(frozen=True)
class Numbering:
    """The steps and samples of one stage, whose steps all take `global_batch_size` samples.

    Step s, from `steps_before` + 1 on, takes [first_sample_of(s), first_sample_of(s + 1)). A run without
    stages is one stage that begins at step 1 and sample 0.
    """

    global_batch_size: int
    steps_before: int = 0
    """Steps of the stages before."""
    first_sample: int = 0
    """Samples of the stages before."""

    def first_sample_of(self, step: Number) -> Number:
        """The first sample of a step, or of each in an integer array."""
        return self.first_sample + (step - 1 - self.steps_before) * self.global_batch_size

    def step_of(self, sample: Number) -> Number:
        """The step that takes a sample, or each of an integer array; at most `steps_before` if none here."""
        return (sample - self.first_sample) // self.global_batch_size + self.steps_before + 1
