"""Results come in order, few at a time, and a process that dies is said to have died."""

import os
import time
from collections.abc import Iterator

import pytest

from data_prep.processes import ordered_map


def slow_first(item: int) -> tuple[int, int]:
    time.sleep(0.05 if item % 5 == 0 else 0)
    return item, os.getpid()


def die_at_seven(item: int) -> int:
    if item == 7:
        os._exit(9)
    return item


@pytest.mark.slow
def test_order_is_kept_and_little_is_taken_ahead():
    taken = []

    def items() -> Iterator[int]:
        for item in range(60):
            taken.append(item)
            yield item

    processes = set()
    for number, (item, process) in enumerate(ordered_map(slow_first, items(), 2)):
        assert item == number
        assert len(taken) <= number + 12
        processes.add(process)
    assert number == 59
    assert len(processes) == 2


@pytest.mark.slow
def test_a_killed_process_ends_the_run_in_words():
    with pytest.raises(SystemExit, match="a worker process was killed"):
        list(ordered_map(die_at_seven, range(20), 2))


def test_one_worker_needs_no_process():
    assert [process for _, process in ordered_map(slow_first, range(3), 1)] == [os.getpid()] * 3
