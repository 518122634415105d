"""Being asked to stop: by a signal, by the clock, or by another rank.

This module imports nothing heavy, so that the handlers stand before torch is imported: a signal in those
seconds is then remembered instead of killing the job.
"""

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """A flag set by signals and the time limit. A second signal changes nothing: the first is obeyed."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._deadline = float("inf")
        self._started = time.monotonic()

    def install(self) -> "StopRequest":
        """Set the flag on SIGTERM, SIGUSR1 and SIGINT from now on. Main thread only."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)
        return self

    def limit(self, seconds: float) -> None:
        """Ask to stop so many seconds after this object was made."""
        self._deadline = self._started + seconds

    @property
    def is_set(self) -> bool:
        """Whether this process was asked to stop."""
        if self.reason is None and time.monotonic() >= self._deadline:
            self.reason = "max_time"
        return self.reason is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name


class StopAgreement:
    """All ranks learn at the same step that one of them was asked to stop, and no step waits for it.

    Each step starts a reduction of the flag on a gloo group and reads the one that the step before started.
    """

    def __init__(self, request: StopRequest, group: "ProcessGroup | None") -> None:
        self._request = request
        self._group = group
        self._pending: tuple[object, object] | None = None

    def should_stop(self) -> bool:
        """Call once a step, on every rank."""
        if self._group is None:
            return self._request.is_set
        import torch
        import torch.distributed as dist

        agreed = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()  # type: ignore[attr-defined]
            agreed = bool(flag.item())  # type: ignore[attr-defined]
        flag = torch.tensor([int(self._request.is_set)])
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, flag)
        return agreed
