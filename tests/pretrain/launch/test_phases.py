"""How long a phase may be silent, on a clock that the test turns: a busy machine must not decide."""

import math

import pytest

from pretrain.launch import phases
from pretrain.launch.phases import Progress
from pretrain.options import TrainOptions
from pretrain.parallel import PROCESS_GROUP_TIMEOUT

LIMIT = 15 * 60  # seconds


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(phases, "time", clock)
    return clock


def test_silence_is_named_with_the_phase_and_what_was_done_last(clock):
    progress = Progress(LIMIT / 60)
    progress.enter("training")
    progress.beat("step 3")
    clock.now += 3 * LIMIT  # until it is measured, training may be as silent as the first step
    assert progress.overdue is None
    clock.now += 2 * LIMIT
    assert "no progress for 4500 s in the phase 'training' after step 3" in progress.overdue
    progress.beat("step 4")
    assert progress.overdue is None


@pytest.mark.parametrize(
    ("phase", "hours"),
    [
        ("building the model", 1),
        ("validation", 1),
        ("the first step", 1),
        ("saving", 4),
        ("reading the data", None),
    ],
)
def test_phases_have_limits_of_their_own(clock, phase, hours):
    progress = Progress(LIMIT / 60)
    progress.enter(phase)
    clock.now += 3600 * (hours or 1000)
    assert progress.overdue is None
    clock.now += 1
    assert (progress.overdue is None) == (hours is None)


def test_the_limit_follows_steps_that_are_slow(clock):
    """77 minutes a step, as of a large batch on two cores, with a sign after each of 4 micro-batches."""
    progress = Progress(LIMIT / 60)
    progress.enter("training")
    warnings = []
    for micro_batch in range(12):
        clock.now += 77 * 60 / 4
        assert progress.overdue is None
        warnings.append(progress.beat(f"micro-batch {micro_batch}"))
    (warning,) = filter(None, warnings)
    assert "every 1155 s only: the watchdog waits 192 minutes now, not 15" in warning
    clock.now += 190 * 60
    assert progress.overdue is None
    clock.now += 3 * 60
    assert progress.overdue is not None


def test_quick_steps_keep_the_limit(clock):
    progress = Progress(LIMIT / 60)
    progress.enter("training")
    for step in range(12):
        clock.now += 1
        assert progress.beat(f"step {step}") is None
    clock.now += LIMIT
    assert progress.overdue is None
    clock.now += 1
    assert progress.overdue is not None


def test_collectives_wait_longer_than_any_phase():
    """Else torch ends the process before the watchdog has said where it hangs."""
    longest = max(multiple for multiple in phases.PHASES.values() if math.isfinite(multiple))
    assert longest * TrainOptions.watchdog_minutes * 60 < PROCESS_GROUP_TIMEOUT.total_seconds()


def test_no_limit(clock):
    progress = Progress()
    progress.enter("training")
    clock.now += 1e9
    assert progress.overdue is None
