import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from pretrain.launch.stop import STOP_SIGNALS, StopAgreement, StopRequest
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
