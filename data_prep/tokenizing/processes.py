"""One process per core over a stream of work, results in the order of the work."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_AHEAD = 4  # pieces of work under way per process: enough that a slow one keeps no other waiting


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def ordered_map(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int
) -> Iterator[ResultT]:
    """`map` over processes; with one worker in this process. Only a few items and results exist at a time.

    Args:
        function: is pickled with each item.
        items: taken as the work proceeds.

    Raises:
        SystemExit: a process died.
    """
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")  # the parent has threads; a fork would copy their locks
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        pending: deque[Future[ResultT]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > _AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            hint = "run the same command again to go on, with fewer --workers if memory is short"
            raise SystemExit(f"error: a worker process was killed; {hint}") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
