"""Signals and time limits ask to stop. How long a phase may be silent, on a clock that the test turns."""

import math
import os
import signal
import socket
import subprocess
import sys

import pytest

from pretrain.launch import stop
from pretrain.launch.stop import STOP_SIGNALS, Progress, StopAgreement, StopRequest
from pretrain.options import TrainOptions
from pretrain.parallel import PROCESS_GROUP_TIMEOUT
from tests.pretrain.running import ROOT


@pytest.fixture(autouse=True)
def _restore_handlers():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_remembered_and_a_second_changes_nothing(number):
    request = StopRequest().install()
    assert not request.is_set
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.is_set
    assert request.reason == signal.Signals(number).name


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(stop, "time", clock)
    return clock


def test_the_time_limit_sets_the_flag(clock):
    request = StopRequest()
    request.limit(60)
    clock.now = 59
    assert not request.is_set
    clock.now = 60
    assert request.is_set
    assert request.reason == "max_time"


def test_one_process_stops_at_once():
    request = StopRequest().install()
    agreement = StopAgreement(request, None)
    assert not agreement.should_stop()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert agreement.should_stop()


WAITING = """
from datetime import timedelta
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog

watchdog = Watchdog(StopRequest().install())
print("waiting", flush=True)
watchdog.start(timedelta(minutes=5))
"""


def test_a_stop_is_heard_while_rank_0_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    place = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in place.items()},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert output.startswith("stopped before a step was done (SIGTERM, starting)")


LIMIT = 15 * 60  # seconds


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
    longest = max(multiple for multiple in stop.PHASES.values() if math.isfinite(multiple))
    assert longest * TrainOptions.watchdog_minutes * 60 < PROCESS_GROUP_TIMEOUT.total_seconds()


def test_no_limit(clock):
    progress = Progress()
    progress.enter("training")
    clock.now += 1e9
    assert progress.overdue is None
