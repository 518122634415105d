"""What a run could not write, and whether it stops for that: the policy of --on_save_error, in one place."""

import io
import os
import sys
import threading
from typing import Any, Literal

from lit_gpt.cli import InputError, open_standard_streams


class SaveErrors:
    """Writers report each attempt, from any thread; the training thread asks once a step what follows.

    A writer that failed keeps its data and tries again at its next occasion: metrics at the next report, log
    and checkpoint at the next save. Both come once more when the run stops.

    Args:
        policy: "stop": the run stops at the first failure; "continue": it does not. Either way it ends with
            an InputError if something is still missing then.
        rank: Rank 0 prints.
    """

    def __init__(self, policy: Literal["stop", "continue"], rank: int) -> None:
        self._stops = policy == "stop"
        self._rank = rank
        self._lock = threading.Lock()
        self._missing: dict[str, str] = {}

    def failed(self, what: str, message: str) -> None:
        """`what` is not on disk; the message, with path and cause, is said once as long as it is the same."""
        with self._lock:
            news = self._missing.get(what) != message
            self._missing[what] = message
        if news:
            self.warn(message + ("" if self._stops else "; the run continues"))

    def succeeded(self, what: str) -> None:
        """`what` is on disk, with all that was missing of it."""
        with self._lock:
            was_missing = self._missing.pop(what, None) is not None
        if was_missing:
            self.warn(f"{what} is written again")

    @property
    def stop(self) -> bool:
        """Whether the run is to stop. Ranks may learn of it a step apart: agree before stopping."""
        with self._lock:
            return self._stops and bool(self._missing)

    def close(self) -> None:
        """The end: no later attempt makes up for what is missing.

        Raises:
            InputError: something is.
        """
        with self._lock:
            if self._missing:
                raise InputError("; ".join(self._missing.values()))

    def warn(self, message: str) -> None:
        if self._rank == 0:
            print(f"warning: {message}", file=sys.stderr, flush=True)


class _Output(io.FileIO):
    """A standard stream that loses what it cannot write: a log on a full disk is no reason to stop."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def keep_output_from_failing() -> None:
    """Let no `print` of this process fail from now on."""
    open_standard_streams()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        raw = io.BufferedWriter(_Output(os.dup(stream.fileno()), "w"))
        wrapped = io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=stream.line_buffering)
        setattr(sys, name, wrapped)
