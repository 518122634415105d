"""Which samples a step takes, over stages of several batch sizes: against counting them one by one."""

import numpy as np

from pretrain.data.numbering import Numbering


def test_steps_and_samples_of_stages_are_those_of_counting():
    steps_before = first_sample = 0
    for n_steps, size in [(5, 6), (1, 16), (7, 1), (4, 10)]:
        numbering = Numbering(size, steps_before, first_sample)
        counted = [step for step in range(steps_before + 1, steps_before + n_steps + 1) for _ in range(size)]
        samples = first_sample + np.arange(len(counted))
        assert numbering.step_of(samples).tolist() == counted
        for step in set(counted):
            assert numbering.first_sample_of(step) == samples[counted.index(step)]
        assert (numbering.step_of(np.arange(-1, first_sample)) <= steps_before).all()
        steps_before, first_sample = steps_before + n_steps, first_sample + len(counted)
        assert numbering.first_sample_of(steps_before + 1) == first_sample
