"""The job that scripts/torture.py starts repeatedly, and the outcome of one start."""

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Process
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import NamedTuple

from lit_gpt.cli import EXIT_BAD_INPUT
from pretrain.options import TrainOptions
from scripts.faults.rank import Fault, Report, run_rank

EXIT_LIMIT = 60.0
"""Seconds within which the other ranks must end after one has died."""


class Outcome(NamedTuple):
    """The outcome of one start of the job."""

    struck: bool
    """Whether the fault occurred."""
    resumed: int | None
    """The step from which all ranks resumed; None if the job ended before that."""
    reached: int
    """Last step that every rank completed."""
    different: int
    """First step that differs from the undisturbed run; 0 for none."""
    complete: bool
    """Whether the run reached its last step."""
    exit_seconds: float
    """Seconds from the first death to the last exit."""
    error: str | None
    """Set if a rank ended in a way that no fault explains, or did not end."""


class Job:
    """The ranks of a run, each a process on this machine."""

    def __init__(self, options: TrainOptions, work_dir: Path, record: bool, startup_seconds: float) -> None:
        self.options = replace(options)
        self.n_ranks = options.devices
        self.startup_seconds = startup_seconds
        self._common = (work_dir, record)
        self._processes: list[Process] = []
        self._reports = [RawValue(Report, -1, -1) for _ in range(self.n_ranks)]
        self._first_death: float | None = None

    def start(self, victim: int = 0, fault: Fault | None = None) -> None:
        """Start all ranks; the victim injects the fault into itself."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for rank, report in enumerate(self._reports):
            own = fault if fault and rank == victim else Fault()
            process = Process(target=run_rank, args=(self.options, rank, port, own, report, *self._common))
            process.start()
            self._processes.append(process)

    @property
    def resumed(self) -> int:
        """The step from which all ranks resumed, -1 before they have."""
        return min(report.resumed for report in self._reports)

    @property
    def reached(self) -> int:
        """The last step completed by all ranks, -1 before they have resumed."""
        return min(report.reached for report in self._reports)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for the condition, the first death, or the end of all ranks."""
        while not condition() and not self._died() and not self._ended():
            time.sleep(0.001)

    @property
    def fired(self) -> bool:
        """Whether the fault given to `start` occurred."""
        return any(report.fired for report in self._reports)

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal if the rank is still alive."""
        if self._processes[rank].is_alive():
            os.kill(self._processes[rank].pid or 0, number)

    def kill(self, rank: int | None = None) -> None:
        """SIGKILL one rank, or all; then wait for all to end."""
        for number in range(self.n_ranks) if rank is None else [rank]:
            self.signal(number, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        """Wait until all ranks have ended, but after a death no longer than EXIT_LIMIT."""
        while not self._ended():
            self._died()
            if self._first_death is not None and time.monotonic() - self._first_death > EXIT_LIMIT:
                break
            time.sleep(0.005)

    def outcome(self) -> Outcome:
        """Return the outcome; call it after `wait`. Ranks that did not end are killed."""
        exit_seconds = time.monotonic() - self._first_death if self._first_death else 0.0
        codes = [process.exitcode for process in self._processes]
        # A run whose last checkpoint meets a full disk must say so by its exit code.
        refused = self.fired and all(code == EXIT_BAD_INPUT for code in codes)
        error = None
        if None in codes:
            error = f"rank {codes.index(None)} did not end within {EXIT_LIMIT:.0f} s of another's death"
        elif any(codes) and not self.killed and not refused:
            error = f"exit codes {codes}, which no fault explains; see {self.options.out_dir}-rank*.txt"
        self.kill()
        return Outcome(
            struck=self.killed or refused,
            resumed=self.resumed if self.resumed >= 0 else None,
            reached=self.reached,
            different=max(report.different for report in self._reports),
            complete=not any(codes) and self.reached == self.options.max_steps,
            exit_seconds=exit_seconds,
            error=error,
        )

    @property
    def killed(self) -> bool:
        """Whether any rank was killed, once all have ended."""
        return any(process.exitcode == -signal.SIGKILL for process in self._processes)

    def _ended(self) -> bool:
        return all(process.exitcode is not None for process in self._processes)

    def _died(self) -> bool:
        died = any(process.exitcode for process in self._processes)
        if died and self._first_death is None:
            self._first_death = time.monotonic()
        return died
