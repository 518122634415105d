import os
import signal
import time

import pytest

from pretrain.launch.stop import STOP_SIGNALS, StopAgreement, StopRequest


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


def test_the_time_limit_sets_the_flag():
    request = StopRequest()
    request.limit(0.05)
    assert not request.is_set
    time.sleep(0.06)
    assert request.is_set
    assert request.reason == "max_time"


def test_one_process_stops_at_once():
    request = StopRequest().install()
    agreement = StopAgreement(request, None)
    assert not agreement.should_stop()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert agreement.should_stop()
