"""A function that hangs, crashes or raises harms nobody, and its process never outlives its task."""

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from data_prep.text.extract import MAX_PAGE_BYTES, _of_page
from data_prep.text.sandbox import Crashed, Sandbox
from lit_gpt.errors import InputError
from tests.data_prep.text.orders import cannot_start, dies_at_start, obey
from tests.pretrain.running import ROOT, environment
from tests.processes import is_alive


@pytest.mark.slow
def test_a_page_that_hangs_or_crashes_is_dropped_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Sandbox(obey, 0.2) as sandbox:
        before = sandbox("this")
        assert _of_page("hang", sandbox) == ("hang", {"reason": "page_too_slow"})
        assert sandbox("this") != before
        assert _of_page("loop", sandbox) == ("loop", {"reason": "page_too_slow"})
        before = sandbox("this")
        assert _of_page("eat", sandbox) == ("eat", {"reason": "page_crashes_extractor"})
        assert sandbox("this") != before  # a new process: none depends on what this page left
        assert _of_page("crash", sandbox) == ("crash", {"reason": "page_crashes_extractor"})
        assert _of_page("recurse", sandbox) == ("recurse", {"reason": "page_crashes_extractor"})
        assert _of_page("nothing", sandbox) == ("nothing", {"reason": "no_main_text"})
        text, excluded = _of_page("crash once", sandbox)
        assert text.startswith("did crash once")
        assert excluded is None
        os.kill(int(sandbox("this").split()[-1]), signal.SIGKILL)  # between two calls
        assert sandbox("that").startswith("did that")
        long = "ä" * (MAX_PAGE_BYTES // 2 + 1)
        reason = {"reason": "page_too_long", "value": len(long.encode()), "limit": MAX_PAGE_BYTES}
        assert _of_page(long, sandbox) == (long, reason)
        with pytest.raises(Crashed, match="RecursionError"):
            sandbox("recurse")


@pytest.mark.parametrize(
    ("function", "why"),
    [(cannot_start, "ImportError: libxml2.so.16: no such file"), (dies_at_start, "its process ended")],
)
def test_a_function_that_cannot_start_ends_the_task_and_is_no_fault_of_the_page(function, why):
    with Sandbox(function, 10) as sandbox, pytest.raises(InputError) as caught:
        _of_page("page", sandbox)
    assert f".orders.{function.__name__} does not work on " in str(caught.value)
    assert f"({why}): compare the packages" in str(caught.value)


def test_a_process_that_cannot_be_started_is_said_as_it_is():
    unpicklable = pytest.raises((AttributeError, pickle.PicklingError), match="lambda")
    with unpicklable, Sandbox(lambda page: page, 10) as sandbox:
        sandbox("page")


def test_its_process_ends_with_a_task_that_is_killed():
    code = (
        "import os, signal\nfrom data_prep.text.extract import main_text\n"
        "from data_prep.text.sandbox import Sandbox\n"
        "if __name__ == '__main__':\n"
        "    sandbox = Sandbox(main_text, 100)\n    sandbox('')\n"
        "    print(sandbox._process.pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file = [sys.executable, "-c", code]
    child = int(subprocess.run(file, stdout=subprocess.PIPE, cwd=ROOT, env=environment()).stdout)
    for _ in range(2000):
        if not is_alive(child):
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the process lives on")
