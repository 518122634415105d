"""Being asked to stop: by a signal, by the clock, or by another rank.

This module imports nothing heavy, so that the handlers stand before torch is imported: a signal in those
seconds is then remembered instead of killing the job.
"""

import contextlib
import os
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """A flag set by signals and the time limit. A second signal changes nothing: the first is obeyed.

    Python runs handlers in the main thread only, between two of its instructions; a thread learns of a signal
    from `is_set` even while the main thread is inside a call that takes minutes.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._signals: int | None = None
        self._deadline = float("inf")
        self._started = time.monotonic()

    def install(self) -> "StopRequest":
        """Set the flag on SIGTERM, SIGUSR1 and SIGINT from now on. Main thread only."""
        self._signals, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)
        return self

    def limit(self, seconds: float) -> None:
        """Ask to stop so many seconds after this object was made."""
        self._deadline = self._started + seconds

    @property
    def is_set(self) -> bool:
        if self.reason is None and self._signals is not None:
            with contextlib.suppress(BlockingIOError):  # none has come
                self.reason = signal.Signals(os.read(self._signals, 1)[0]).name
        if self.reason is None and time.monotonic() >= self._deadline:
            self.reason = "max_time"
        return self.reason is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name


class StopAgreement:
    """All ranks learn at the same call that one of them was asked to stop, and none waits for it.

    Each call starts a reduction of the flag on a gloo group and reads the one that the call before started.
    """

    def __init__(self, request: StopRequest, group: "ProcessGroup | None") -> None:
        self.reached = False
        """Whether all ranks stop. Stays true."""
        self._request = request
        self._group = group
        self._pending: tuple[object, object] | None = None

    def should_stop(self) -> bool:
        """Call as often on every rank: after steps and between micro-batches, of training and validation."""
        if self._group is None:
            self.reached = self._request.is_set
        elif not self.reached:
            self._reduce()
        return self.reached

    def _reduce(self) -> None:
        import torch
        import torch.distributed as dist

        if self._pending is not None:
            work, flag = self._pending
            work.wait()  # type: ignore[attr-defined]
            self.reached = bool(flag.item())  # type: ignore[attr-defined]
        flag = torch.tensor([int(self._request.is_set)])
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, flag)
