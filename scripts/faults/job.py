"""The job that scripts/torture.py starts again and again, and what became of a start."""

import multiprocessing as mp
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lit_gpt.cli import EXIT_BAD_INPUT
from pretrain.options import TrainOptions
from scripts.faults.rank import Fault, Report, run_rank

EXIT_LIMIT = 60.0
"""Seconds in which the other ranks must end when one has died."""


class Outcome(NamedTuple):
    """What became of a start of the job."""

    struck: bool
    """Whether the fault came about."""
    resumed: int | None
    """The step that all ranks took up; None if it did not get so far."""
    reached: int
    """Last step that every rank has done."""
    different: int
    """First step that differs from the undisturbed run; 0 for none."""
    complete: bool
    """Whether it ended with its last step."""
    exit_seconds: float
    """From the first death to the last exit."""
    error: str | None
    """A rank ended in a way that no fault explains, or did not end."""


class Job:
    """Some ranks, each a process of this machine, doing the same run."""

    def __init__(self, options: TrainOptions, work_dir: Path, record: bool) -> None:
        self.options = replace(options)
        self.n_ranks = options.devices
        self._common = (work_dir, record)
        self._processes: list[mp.process.BaseProcess] = []
        self._reports = [Report.empty() for _ in range(self.n_ranks)]
        self._first_death: float | None = None

    def start(self, victim: int = 0, fault: Fault | None = None) -> None:
        """Start all ranks, one of them with a fault to bring about itself."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for rank, report in enumerate(self._reports):
            own = fault if fault is not None and rank == victim else Fault()
            process = mp.Process(target=run_rank, args=(self.options, rank, port, own, report, *self._common))
            process.start()
            self._processes.append(process)

    @property
    def resumed(self) -> int:
        """The step that all ranks took up, -1 before they have."""
        return min(report.resumed[0] for report in self._reports)

    @property
    def reached(self) -> int:
        """The last step done by all, -1 before they have taken up any."""
        return min(report.reached[0] for report in self._reports)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for it, or for the first death, or the end of all."""
        while not condition() and not self._died() and not self._ended():
            time.sleep(0.001)

    @property
    def fired(self) -> bool:
        """Whether the fault given to `start` came about."""
        return any(report.fired[0] for report in self._reports)

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send it if the rank is still there."""
        if self._processes[rank].is_alive():
            os.kill(self._processes[rank].pid or 0, number)

    def kill(self, ranks: list[int]) -> None:
        """SIGKILL."""
        for rank in ranks:
            self.signal(rank, signal.SIGKILL)

    def wait(self) -> None:
        """Until all have ended: as long as it takes, but after a death only EXIT_LIMIT."""
        while not self._ended():
            self._died()
            if self._first_death is not None and time.monotonic() - self._first_death > EXIT_LIMIT:
                break
            time.sleep(0.005)

    def outcome(self) -> Outcome:
        """Call after `wait`."""
        exit_seconds = time.monotonic() - self._first_death if self._first_death else 0.0
        codes = [process.exitcode for process in self._processes]
        # A run whose last checkpoint meets a full disk must say so by its exit code.
        refused = self.fired and all(code == EXIT_BAD_INPUT for code in codes)
        error = None
        if None in codes:
            error = f"rank {codes.index(None)} did not end within {EXIT_LIMIT:.0f} s of another's death"
        elif any(codes) and not self.killed and not refused:
            error = f"exit codes {codes}, which no fault explains; see {self.options.out_dir}-rank*.txt"
        self.kill([rank for rank, code in enumerate(codes) if code is None])
        return Outcome(
            struck=self.killed or refused,
            resumed=self.resumed if self.resumed >= 0 else None,
            reached=self.reached,
            different=max(report.different[0] for report in self._reports),
            complete=not any(codes) and self.reached == self.options.max_steps,
            exit_seconds=exit_seconds,
            error=error,
        )

    @property
    def killed(self) -> bool:
        """Whether any rank was, once all have ended."""
        return any(process.exitcode == -signal.SIGKILL for process in self._processes)

    def _ended(self) -> bool:
        return all(process.exitcode is not None for process in self._processes)

    def _died(self) -> bool:
        died = any(process.exitcode for process in self._processes)
        if died and self._first_death is None:
            self._first_death = time.monotonic()
        return died
