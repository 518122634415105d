"""When a process is to stop: asked by a signal, the clock or another rank, or silent for too long.

This module imports nothing heavy, so that the handlers stand before torch is imported: a signal in those
seconds is then remembered instead of killing the job.
"""

import contextlib
import math
import os
import signal
import time
from collections import deque
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


SLOWEST_STEPS = 10  # a step may take so many times as long as those before
FIRST_BEATS = 3  # of training, before their measure counts

# How many times --watchdog_minutes each phase may be silent.
PHASES = {
    "starting": math.inf,  # the roll call has limits of its own
    "reading the data": math.inf,  # packing takes hours, and shows a bar
    "checking devices and network": math.inf,  # limits of its own
    "building the model": 4.0,
    "verifying and loading a checkpoint": 16.0,
    "validation before the first step": 4.0,  # compiles
    "the first step": 4.0,  # compiles
    "training": 1.0,
    "validation": 4.0,  # the first batch compiles
    "saving": 16.0,  # waits for the checkpoint before
    "finishing": 16.0,  # as saving
}
SAVED_AFTER = ("training", "validation", "saving", "finishing")


class Progress:
    """The phase that this process is in, and when it last made progress.

    Args:
        minutes: Longest silence of a training step; infinite for no limit.
    """

    def __init__(self, minutes: float = math.inf) -> None:
        self.minutes = minutes
        self.phase = "starting"
        self._where = ""
        self._since = time.monotonic()
        self._intervals: deque[float] = deque(maxlen=8 * FIRST_BEATS)
        self._announced = 0.0

    @property
    def saves_nothing(self) -> bool:
        """Whether no step is done yet that a stop would lose."""
        return self.phase not in SAVED_AFTER

    def enter(self, phase: str) -> None:
        """Begin a phase, one of PHASES."""
        assert phase in PHASES
        # In this order: a thread that looks in between must not measure the last phase by this one's limit.
        self._since = time.monotonic()
        self.phase = phase

    def beat(self, where: str) -> str | None:
        """Progress was made; `where` says what was done last. Returns a warning when the limit has grown."""
        now = time.monotonic()
        interval, self._since, self._where = now - self._since, now, where
        if self.phase != "training":
            return None
        self._intervals.append(interval)
        allowed = self.seconds_allowed
        if len(self._intervals) < FIRST_BEATS or allowed <= max(60 * self.minutes, 2 * self._announced):
            return None
        self._announced = allowed
        return (
            f"training shows progress every {max(self._intervals):.0f} s only: the watchdog waits "
            f"{allowed / 60:.0f} minutes now, not {self.minutes:g} (--watchdog_minutes)"
        )

    @property
    def seconds_allowed(self) -> float:
        """Longest silence, now. In training it follows the measured one, so that a slow machine may train."""
        limit = 60 * self.minutes * PHASES[self.phase]
        if self.phase != "training":
            return limit
        if len(self._intervals) < FIRST_BEATS:
            return 60 * self.minutes * PHASES["the first step"]
        return max(limit, SLOWEST_STEPS * max(self._intervals))

    @property
    def overdue(self) -> str | None:
        """What is wrong, if the silence has lasted too long."""
        silence = time.monotonic() - self._since
        if silence <= self.seconds_allowed:
            return None
        after = f" after {self._where}" if self._where else ""
        return f"no progress for {silence:.0f} s in the phase {self.phase!r}{after} (--watchdog_minutes)"
