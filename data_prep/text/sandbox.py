"""Call a function in a process of its own, which may hang or crash without harm to the caller."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from data_prep.processes import start_worker

_ATTEMPTS = 2  # the kernel may have killed the process for the memory of others


class Crashed(Exception):
    """The function raised an exception, or its process ended."""


class Sandbox:
    """The function in a process that is started again when needed.

    datatrove's ExtractorSandbox leaves its process behind if the task is killed, and fails with the task if
    its process was killed between two calls.

    Args:
        function: a function of a module, of one argument; called with "" first, to import what it needs.
        seconds: after which a call is given up.
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
            TimeoutError: it did not return in time.
            Crashed: it raised an exception, or its process ended twice.
        """
        for _ in range(_ATTEMPTS):
            try:
                connection = self._connection or self._start()
                connection.send(argument)
                if not connection.poll(self._seconds):
                    self._end()
                    raise TimeoutError
                returned, value = connection.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                self._end()
                continue
            if not returned:
                raise Crashed(value)
            return value
        raise Crashed("its process ended")

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of the parent's threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is seen here
        self._connection.recv()
        return self._connection

    def _end(self) -> None:
        if self._process is not None and self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
        self._process = self._connection = None


def _serve(connection: Connection, function: Callable[[str], Any]) -> None:
    start_worker()
    function("")
    connection.send("ready")
    while True:
        try:
            argument = connection.recv()
        except EOFError:
            return
        try:
            result = True, function(argument)
        except Exception as error:
            result = False, type(error).__name__
        connection.send(result)
