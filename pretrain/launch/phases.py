"""What a rank does from its start to its end, and how long each part may go without a sign of progress."""

import math
import time
from collections import deque

SLOWEST_STEPS = 10  # a step may take so many times as long as those before
FIRST_BEATS = 3  # of training, before their measure counts

# How many times --watchdog_minutes each phase may be silent.
PHASES = {
    "starting": math.inf,  # the roll call has limits of its own
    "reading the data": math.inf,  # packing takes hours, and shows a bar
    "checking devices and network": math.inf,  # limits of its own
    "building the model": 4.0,
    "verifying and loading a checkpoint": 16.0,
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
