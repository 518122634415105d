"""The faults of scripts/torture.py, and the job that suffers them."""

import multiprocessing as mp
import os
import pickle
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lit_gpt.checkpoint import MANIFEST, list_checkpoints
from pretrain.options import TrainOptions
from scripts.torture_rank import PHASES, STAGING, Fault, Report, run_rank

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

    def until_fault(self) -> None:
        """Wait until the fault given to `start` came about, or the end of all."""
        self.until(lambda: any(report.fired[0] for report in self._reports))

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
        error = None
        if None in codes:
            error = f"rank {codes.index(None)} did not end within {EXIT_LIMIT:.0f} s of another's death"
        elif any(codes) and not self.killed:
            error = f"exit codes {codes}, which no fault explains; see {self.options.out_dir}-rank*.txt"
        self.kill([rank for rank, code in enumerate(codes) if code is None])
        return Outcome(
            struck=self.killed,
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


# ---- what can happen


Inject = Callable[[Job, random.Random, float], None]


def _kill_in_phase(phase: str, all_ranks: bool) -> Inject:
    def inject(job: Job, rng: random.Random, startup_seconds: float) -> None:
        delay = rng.choice([0.0, 0.0, rng.uniform(0, 0.005)])
        job.start(_victim(phase, job, rng), Fault(phase, occurrence=rng.randint(1, 3), delay=delay))
        job.until(lambda: False)
        if all_ranks:
            job.kill(list(range(job.n_ranks)))
        job.wait()

    return inject


def _kill_any_time(all_ranks: bool) -> Inject:
    def inject(job: Job, rng: random.Random, startup_seconds: float) -> None:
        job.start()
        _let_run(job, rng, startup_seconds)
        job.kill(list(range(job.n_ranks)) if all_ranks else [rng.randrange(job.n_ranks)])
        job.wait()

    return inject


def _stop(number: signal.Signals) -> Inject:
    def inject(job: Job, rng: random.Random, startup_seconds: float) -> None:
        job.start()
        _let_train(job, rng)
        job.signal(rng.randrange(job.n_ranks), number)
        job.wait()

    return inject


def _no_space(phase: str) -> Inject:
    """A file operation of a save fails, the run goes on, and some steps later all are killed."""

    def inject(job: Job, rng: random.Random, startup_seconds: float) -> None:
        job.start(_victim(phase, job, rng), Fault(phase, occurrence=rng.randint(1, 3), kill=False))
        job.until_fault()
        _let_train(job, rng)
        job.kill(list(range(job.n_ranks)))
        job.wait()

    return inject


def _damage(change: Callable[[Path], None]) -> Inject:
    """All are killed, and then something happens to the newest checkpoint, which is not the only one."""

    def inject(job: Job, rng: random.Random, startup_seconds: float) -> None:
        job.start()
        _let_train(job, rng)
        out_dir = Path(job.options.out_dir)
        job.until(lambda: len(list_checkpoints(out_dir)) > 1)
        job.kill(list(range(job.n_ranks)))
        job.wait()
        if job.killed and len(checkpoints := list_checkpoints(out_dir)) > 1:
            change(checkpoints[-1][1])

    return inject


def _victim(phase: str, job: Job, rng: random.Random) -> int:
    return 0 if phase in PHASES and PHASES[phase].rank_0_only else rng.randrange(job.n_ranks)


def _let_run(job: Job, rng: random.Random, startup_seconds: float) -> None:
    """Up to any moment of the start, or of the training after it."""
    if rng.random() < 0.5:
        end = time.monotonic() + rng.uniform(0, startup_seconds)
        job.until(lambda: time.monotonic() > end)
    else:
        _let_train(job, rng)


def _let_train(job: Job, rng: random.Random) -> None:
    """Some steps from where it is, and a little more."""
    steps = rng.randint(1, 12)
    job.until(lambda: job.resumed >= 0)
    first = job.reached
    job.until(lambda: job.reached >= first + steps)
    time.sleep(rng.uniform(0, 0.02))


def _shard(folder: Path) -> Path:
    return max(folder.rglob("*.safetensors"), key=lambda path: (path.stat().st_size, path))


def _overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def _flip_bit(folder: Path) -> None:
    content = _shard(folder).read_bytes()
    middle = len(content) // 2
    _overwrite(_shard(folder), middle, bytes([content[middle] ^ 16]))


def _swap(folder: Path) -> None:
    first, last = sorted((folder / "optim").iterdir())[0], sorted((folder / "optim").iterdir())[-1]
    held = first.read_bytes()
    first.write_bytes(last.read_bytes())
    last.write_bytes(held)


def _bring_stale(folder: Path) -> None:
    older = list_checkpoints(folder.parent)[0][1]
    shard = _shard(folder)
    shard.write_bytes((older / shard.relative_to(folder)).read_bytes())


KINDS: dict[str, Inject] = {
    **{
        f"{who} killed: {phase}": _kill_in_phase(phase, all_ranks)
        for phase in (STAGING, *PHASES)
        for who, all_ranks in (("one rank", False), ("all ranks", True))
    },
    "one rank killed: any moment": _kill_any_time(all_ranks=False),
    "all ranks killed: any moment": _kill_any_time(all_ranks=True),
    "SIGTERM to one rank": _stop(signal.SIGTERM),
    "SIGUSR1 to one rank": _stop(signal.SIGUSR1),
    **{f"no space, then killed: {phase}": _no_space(phase) for phase in ("shard", "manifest", "rename")},
    "newest: bit flip": _damage(_flip_bit),
    "newest: zeroed page": _damage(lambda folder: _overwrite(_shard(folder), 4096, bytes(4096))),
    "newest: truncated shard": _damage(lambda folder: os.truncate(_shard(folder), 5000)),
    "newest: missing shard": _damage(lambda folder: _shard(folder).unlink()),
    "newest: swapped shards": _damage(_swap),
    "newest: stale shard": _damage(_bring_stale),
    "newest: torn manifest": _damage(lambda folder: os.truncate(folder / MANIFEST, 200)),
    "newest: planted pickle": _damage(lambda folder: pickle.dump(print, (folder / ".metadata").open("wb"))),
}


def suffer(job: Job, kind: str, rng: random.Random, startup_seconds: float) -> Outcome:
    """Start the job, let the fault happen, wait for all ranks to end."""
    KINDS[kind](job, rng, startup_seconds)
    outcome = job.outcome()
    stopped = kind.startswith("SIG") and outcome.error is None and not outcome.complete
    return outcome._replace(struck=outcome.struck or stopped)
