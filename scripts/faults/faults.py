"""The job that scripts/torture.py starts repeatedly, and the kinds of faults that strike it."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import Process
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import NamedTuple

from lit_gpt.checkpoint.folder import MANIFEST, list_checkpoints
from lit_gpt.cli import EXIT_BAD_INPUT
from pretrain.options import TrainOptions
from pretrain.stages.options import resolve_stages
from scripts.faults.ports import free_ports
from scripts.faults.rank import BORDER, PHASES, STAGING, Fault, Report, run_rank

EXIT_LIMIT = 60.0
"""Seconds within which the other ranks must end after one has died."""
PICKLE = b"cos\nmkdir\n(S'a-pickle-was-run'\ntR."
"""Unpickling it creates a folder of that name."""


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
        (port,) = free_ports(1)
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
        return min(map(self.reached_by, range(self.n_ranks)))

    def reached_by(self, rank: int) -> int:
        """The last step completed by a rank, -1 before it has resumed."""
        return self._reports[rank].reached

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for the condition, the first death, or the end of all ranks."""
        while not condition() and None in self._exit_codes() and self._first_death is None:
            time.sleep(0.001)

    @property
    def fired(self) -> bool:
        """Whether the fault given to `start` occurred."""
        return any(report.fired for report in self._reports)

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal if the rank is still alive; then wait for all to end."""
        if self._processes[rank].is_alive():
            os.kill(self._processes[rank].pid or 0, number)
        self.wait()

    def kill(self, rank: int | None = None) -> None:
        """SIGKILL one rank, or all; then wait for all to end."""
        for process in self._processes if rank is None else [self._processes[rank]]:
            process.kill()
        self.wait()

    def wait(self) -> None:
        """Wait until all ranks have ended, but after a death no longer than EXIT_LIMIT."""
        while None in self._exit_codes():
            if self._first_death is not None and time.monotonic() - self._first_death > EXIT_LIMIT:
                break
            time.sleep(0.005)

    def outcome(self) -> Outcome:
        """Return the outcome; call it after `wait`. Ranks that did not end are killed."""
        exit_seconds = time.monotonic() - self._first_death if self._first_death else 0.0
        codes = self._exit_codes()
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
            complete=not any(codes) and self.reached == resolve_stages(self.options)[-1].last_step,
            exit_seconds=exit_seconds,
            error=error,
        )

    @property
    def killed(self) -> bool:
        """Whether any rank was killed, once all have ended."""
        return -signal.SIGKILL in self._exit_codes()

    def _exit_codes(self) -> list[int | None]:
        """None for a rank that has not ended; notes the time of the first death."""
        codes = [process.exitcode for process in self._processes]
        if any(codes) and self._first_death is None:
            self._first_death = time.monotonic()
        return codes


# ---- the kinds: each starts the job, injects a fault, and waits for all ranks

Inject = Callable[[Job, random.Random], None]


def _kill_in_phase(phase: str, all_ranks: bool, job: Job, rng: random.Random) -> None:
    delay = rng.choice([0.0, 0.0, rng.uniform(0, 0.005)])
    victim, changes = _victim(phase, job, rng), 40 if phase == BORDER else 3
    job.start(victim, Fault(phase, occurrence=rng.randint(1, changes), delay=delay))
    job.until(lambda: False)
    if all_ranks:
        job.kill()
    job.wait()


def _kill_any_time(all_ranks: bool, job: Job, rng: random.Random) -> None:
    job.start()
    if rng.random() < 0.5:
        end = time.monotonic() + rng.uniform(0, job.startup_seconds)
        job.until(lambda: time.monotonic() > end)
    else:
        _let_train(job, rng)
    job.kill(None if all_ranks else rng.randrange(job.n_ranks))


def _stop(number: signal.Signals, job: Job, rng: random.Random) -> None:
    job.start()
    _let_train(job, rng)
    job.signal(rng.randrange(job.n_ranks), number)


def _no_space(phase: str, job: Job, rng: random.Random) -> None:
    """A file operation of a save fails, the run continues, and some steps later all ranks are killed."""
    job.start(_victim(phase, job, rng), Fault(phase, occurrence=rng.randint(1, 3), kill=False))
    job.until(lambda: job.fired)
    _let_train(job, rng)
    job.kill()


def _damage(change: Callable[[Path], object], job: Job, rng: random.Random) -> None:
    """All ranks are killed, and then the newest of several checkpoints is changed."""
    job.start()
    _let_train(job, rng)
    out_dir = Path(job.options.out_dir)
    job.until(lambda: len(list_checkpoints(out_dir)) > 1)
    job.kill()
    if job.killed and len(checkpoints := list_checkpoints(out_dir)) > 1:
        change(checkpoints[-1][1])


def _victim(phase: str, job: Job, rng: random.Random) -> int:
    alone = phase == BORDER or (phase in PHASES and PHASES[phase].rank_0_only)
    writes_alone = phase == "shard" and job.options.state_dict_type == "full"
    return 0 if alone or writes_alone else rng.randrange(job.n_ranks)


def _let_train(job: Job, rng: random.Random) -> None:
    """Wait for some steps to complete, and a few milliseconds more."""
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
    files = sorted((folder / "optim").iterdir())
    first, last = files[0], files[-1]
    held = first.read_bytes()
    first.write_bytes(last.read_bytes())
    last.write_bytes(held)


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _bring_stale(folder: Path) -> None:
    older = list_checkpoints(folder.parent)[0][1]
    shard = _shard(folder)
    shard.write_bytes((older / shard.relative_to(folder)).read_bytes())


KINDS: dict[str, Inject] = {
    **{
        f"{who} killed: {phase}": partial(_kill_in_phase, phase, all_ranks)
        for phase in (STAGING, *PHASES, BORDER)
        for who, all_ranks in (("one rank", False), ("all ranks", True))
    },
    "one rank killed: any moment": partial(_kill_any_time, False),
    "all ranks killed: any moment": partial(_kill_any_time, True),
    "SIGTERM to one rank": partial(_stop, signal.SIGTERM),
    "SIGUSR1 to one rank": partial(_stop, signal.SIGUSR1),
    **{
        f"no space, then killed: {phase}": partial(_no_space, phase)
        for phase in ("shard", "manifest", "rename")
    },
    "newest: bit flip": partial(_damage, _flip_bit),
    "newest: zeroed page": partial(_damage, lambda folder: _overwrite(_shard(folder), 4096, bytes(4096))),
    "newest: truncated shard": partial(_damage, lambda folder: os.truncate(_shard(folder), 5000)),
    "newest: missing shard": partial(_damage, lambda folder: _shard(folder).unlink()),
    "newest: swapped shards": partial(_damage, _swap),
    "newest: stale shard": partial(_damage, _bring_stale),
    "newest: torn manifest": partial(_damage, lambda folder: os.truncate(folder / MANIFEST, 200)),
    "newest: folder for a manifest": partial(_damage, lambda folder: _replace(folder / MANIFEST, Path.mkdir)),
    "newest: FIFO for a shard": partial(_damage, lambda folder: _replace(_shard(folder), os.mkfifo)),
    "newest: pickle for a shard": partial(_damage, lambda folder: _shard(folder).write_bytes(PICKLE)),
    "newest: planted pickle": partial(
        _damage, lambda folder: (folder / ".metadata").write_bytes(PICKLE)
    ),  # no damage
}


def suffer(job: Job, kind: str, rng: random.Random) -> Outcome:
    """Start the job, inject the fault, wait for all ranks to end."""
    KINDS[kind](job, rng)
    outcome = job.outcome()
    stopped = kind.startswith("SIG") and outcome.error is None and not outcome.complete
    return outcome._replace(struck=outcome.struck or stopped)
