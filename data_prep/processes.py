"""One run at a time in a folder, and worker processes over a stream of items, with results in order."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from lit_gpt.cli import InputError
from lit_gpt.files import lock
from lit_gpt.store.store_writer import UNFINISHED

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_AHEAD = 4  # items in flight per process, so that a slow item does not starve the other processes


@contextlib.contextmanager
def to_write(folder: Path) -> Iterator[None]:
    """Turn the file system's refusal of a folder of --output into an InputError."""
    try:
        yield
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise InputError(f"{folder} cannot be written: {reason}; give another --output") from None


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Create a folder and lock it against a second run.

    Raises:
        InputError: it cannot be created, or another run holds it.
    """
    path = folder / f"{UNFINISHED}lock"
    with to_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(path)
    if held is None:
        raise InputError(f"another run writes into {folder}; wait for it or give another --output")
    with held:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def ordered_map(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int
) -> Iterator[ResultT]:
    """`map` in `workers` processes, or in this one if `workers` is 1. Few items and results exist at a time.

    Args:
        function: pickled with each item.
        items: consumed as the work proceeds.

    Raises:
        SystemExit: a process was killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of the parent's threads
    with ProcessPoolExecutor(workers, context, initializer=start_worker) as pool:
        pending: deque[Future[ResultT]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > _AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            hint = "run the same command again to continue, with fewer --workers if memory is short"
            raise SystemExit(f"error: a worker process was killed; {hint}") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """Leave Ctrl-C to the parent, and exit when the parent ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
