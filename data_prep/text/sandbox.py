"""Call a function in a process of its own, which may hang or crash without harm to the caller."""

import math
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.processes import start_worker
from lit_gpt.errors import InputError

MEMORY_BYTES = 2 << 30
"""What the function may allocate; it is refused more, and fails."""
_ATTEMPTS = 2  # the kernel may have killed the process for the memory of others
_PATIENCE = 10  # wall clock to CPU time; it ends what waits, not what is slow on a busy machine


class Crashed(Exception):
    """The function raised an exception, or its process ended."""


class Sandbox:
    """The function in a process that is started again when needed.

    datatrove's ExtractorSandbox leaves its process behind if the task is killed, and fails with the task if
    its process was killed between two calls.

    Args:
        function: a function of a module, of one argument; called with "" first, to import what it needs.
        seconds: CPU time after which a call is given up.
    """

    def __init__(self, function: Callable[[str], Any], seconds: float) -> None:
        self._function = function
        self._seconds = seconds
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __call__(self, argument: str) -> Any:
        """What the function returns.

        Raises:
            TimeoutError: it took too long.
            Crashed: it raised an exception, or its process ended twice.
            InputError: it fails on "" too, twice: no argument is to blame.
        """
        for _ in range(_ATTEMPTS):
            try:
                connection = self._connection or self._started()
                connection.send(argument)
                if not connection.poll(_PATIENCE * self._seconds):
                    self._end()
                    raise TimeoutError
                returned, value = connection.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                if self._end() == -signal.SIGXCPU:
                    raise TimeoutError from None
                continue
            if not returned:
                self._end()  # no later result may depend on what is left of this call
                raise Crashed(value)
            return value
        raise Crashed("its process ended")

    def _started(self) -> Connection:
        why = ""
        for _ in range(_ATTEMPTS):
            connection = self._start()
            try:
                why = connection.recv()
            except (EOFError, ConnectionResetError):
                why = "its process ended"
            if not why:
                return connection
            self._end()
        name = f"{self._function.__module__}.{self._function.__name__}"
        raise InputError(
            f"{name} does not work on {os.uname().nodename} ({why}): compare the packages installed "
            "there with requirements.txt, and run the command again"
        )

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of the parent's threads
        self._connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._function, self._seconds), daemon=True)
        process.start()
        self._process = process
        theirs.close()  # so that its end is seen here
        return self._connection

    def _end(self) -> int | None:
        """The exit code, or the signal as a negative number."""
        code = None
        if self._process is not None and self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            code = self._process.exitcode
        self._process = self._connection = None
        return code


def _serve(connection: Connection, function: Callable[[str], Any], seconds: float) -> None:
    start_worker()
    try:
        function("")
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    pages_held = int(Path("/proc/self/statm").read_text().split()[0])
    _limit(resource.RLIMIT_AS, pages_held * resource.getpagesize() + MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    connection.send("")  # nothing is wrong
    while True:
        try:
            argument = connection.recv()
        except EOFError:
            return
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds))
        try:
            result = True, function(argument)
        except Exception as error:
            result = False, type(error).__name__
        connection.send(result)


def _limit(what: int, value: int) -> None:
    """Set a soft limit; the hard one may be lower already."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
