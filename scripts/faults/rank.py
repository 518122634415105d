"""One rank of a tortured job: the real trainer, compared at every step, with at most one fault injected.

Faults are injected from outside the training code: the interpreter's audit hook sees every file operation
before it happens.
"""

import ctypes
import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import xxhash

from lit_gpt.cli import InputError
from pretrain.checkpoint.snapshot import Staging, local_part, model_tensors, optimizer_tensors
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.options import TrainOptions
from pretrain.stages.options import resolve_stages
from pretrain.trainer import Trainer


class Phase(NamedTuple):
    """A file operation of the run, as the audit hook sees it."""

    event: str
    matches: Callable[[tuple], bool]
    rank_0_only: bool = True


def _path(arguments: tuple) -> str:
    return str(arguments[0])


def _creates(arguments: tuple) -> bool:
    return bool(arguments[2] & os.O_CREAT)


def _writes(arguments: tuple, ending: str) -> bool:
    return _path(arguments).endswith(ending) and _creates(arguments)


def _reads(arguments: tuple, ending: str) -> bool:
    return _path(arguments).endswith(ending) and not _creates(arguments)


PHASES = {
    "making the folder": Phase("os.mkdir", lambda a: _path(a).endswith(".pth.tmp")),
    "shard": Phase("open", lambda a: _writes(a, ".safetensors"), rank_0_only=False),
    "state": Phase("open", lambda a: _writes(a, "/state.json")),
    "manifest": Phase("open", lambda a: _writes(a, "/MANIFEST.json")),
    "rename": Phase("os.rename", lambda a: _path(a).endswith(".pth.tmp")),
    "retention's rename": Phase("os.rename", lambda a: ".deleting" in str(a[1])),
    "retention's removal": Phase("os.remove", lambda a: _path(a).endswith(".safetensors")),
    "datapoint log": Phase("open", lambda a: "/datapoints/" in _path(a) and _creates(a)),
    "verification": Phase("open", lambda a: _reads(a, ".safetensors"), rank_0_only=False),
}
STAGING = "staging"  # a copy in memory, no file operation
BORDER = "border"  # any change to files after the last step of a stage, until the next has done one
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


PRELOADED = [__name__, "torch._dynamo", "pandas"]
"""For the process that ranks fork off: also what torch and pyarrow import in a run's first step."""


class Fault(NamedTuple):
    """The fault that a rank injects into itself, if any."""

    phase: str | None = None
    occurrence: int = 1
    """The match of the phase at which it strikes, counted from the start of the process."""
    kill: bool = True
    """Kill the process; otherwise the file operation fails as on a full disk."""
    number: signal.Signals = signal.SIGKILL
    """The signal that kills."""
    delay: float = 0.0
    """Seconds from the match to the kill, so that it strikes within the operation too."""


class Report(ctypes.Structure):
    """What a rank reports to the parent process, in shared memory."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("resumed", "reached", "fired", "different"))
    resumed: int
    """The step resumed from, -1 before that."""
    reached: int
    """The last completed step, -1 before any."""
    fired: int
    """Whether the fault struck."""
    different: int
    """First step whose state differs bitwise from that of the undisturbed run; 0 for none."""


class WatchedTrainer(Trainer):
    """Compares this rank's weights and moments with the undisturbed run's at every step."""

    def __init__(
        self, options: TrainOptions, watchdog: Watchdog, report: Report, fingerprints: Path, record: bool
    ) -> None:
        super().__init__(options, watchdog)
        self._report = report
        self._path = fingerprints
        self._record = record
        self._expected = [] if record else fingerprints.read_text().split()
        report.resumed = report.reached = self.step
        self._compare()

    def train_step(self, *arguments: object) -> bool:
        done = super().train_step(*arguments)  # type: ignore[arg-type]
        self._compare()
        self._report.reached = self.step
        return done

    def _compare(self) -> None:
        if self.step == self.stage.steps_before:
            return  # before a stage's first step its optimizer may be a fresh one
        fingerprint = self._fingerprint()
        if self._record:
            with self._path.open("a") as file:
                file.write(fingerprint + "\n")
        elif fingerprint != self._expected[self.step - 1] and not self._report.different:
            self._report.different = self.step

    def _fingerprint(self) -> str:
        moments, scalars = optimizer_tensors(self.model, self.optimizer)
        digest = xxhash.xxh3_128(repr(scalars).encode())
        for name, tensor in sorted((model_tensors(self.model) | moments).items()):
            digest.update(name.encode())
            digest.update(local_part(tensor).cpu().contiguous().numpy().data)
        return digest.hexdigest()


def run_rank(
    options: TrainOptions, rank: int, port: int, fault: Fault, report: Report, run: Path, record: bool
) -> None:
    """Run the trainer in this process; its output goes to `OUT_DIR-rank<rank>.txt`."""
    gc.freeze()  # or the first collection looks at all that was imported before the fork
    output = os.open(f"{options.out_dir}-rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]  # this job is not SLURM's, even inside a SLURM job
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(options.devices),
        "LOCAL_WORLD_SIZE": str(options.devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "torture",
    }
    _arm(fault, report, {stage.last_step for stage in resolve_stages(options)[:-1]})
    watchdog = Watchdog(StopRequest().install())
    try:
        WatchedTrainer(options, watchdog, report, run / f"fingerprints-rank{rank}.txt", record).fit()
    except InputError as error:
        watchdog.refuse(str(error))


def _arm(fault: Fault, report: Report, borders: Collection[int]) -> None:
    if fault.phase is None:
        return
    seen = 0

    def strike(path: str) -> None:
        nonlocal seen
        seen += 1
        if seen != fault.occurrence:
            return
        report.fired = 1
        if not fault.kill:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if fault.delay:
            threading.Timer(fault.delay, os.kill, (os.getpid(), fault.number)).start()
        else:
            os.kill(os.getpid(), fault.number)

    if fault.phase == STAGING:
        take = Staging.take

        def staged(*arguments: object) -> object:
            strike("")
            return take(*arguments)  # type: ignore[arg-type]

        Staging.take = staged  # type: ignore[method-assign, assignment]
        return
    phase = PHASES.get(fault.phase)

    def strikes(event: str, arguments: tuple) -> bool:
        if phase is not None:
            return event == phase.event and phase.matches(arguments)
        return report.reached in borders and (event in _CHANGES or (event == "open" and _creates(arguments)))

    def audit(event: str, arguments: tuple) -> None:
        if strikes(event, arguments):
            strike(_path(arguments))

    sys.addaudithook(audit)
