"""The kinds of faults of scripts/torture.py; each starts the job, injects a fault, waits for all ranks."""

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lit_gpt.checkpoint.folder import MANIFEST, list_checkpoints
from scripts.faults.job import Job, Outcome
from scripts.faults.rank import PHASES, STAGING, Fault

PICKLE = b"cos\nmkdir\n(S'a-pickle-was-run'\ntR."
"""Unpickling it creates a folder of that name."""

Inject = Callable[[Job, random.Random], None]


def _kill_in_phase(phase: str, all_ranks: bool, job: Job, rng: random.Random) -> None:
    delay = rng.choice([0.0, 0.0, rng.uniform(0, 0.005)])
    job.start(_victim(phase, job, rng), Fault(phase, occurrence=rng.randint(1, 3), delay=delay))
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
    job.wait()


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
    alone = phase in PHASES and PHASES[phase].rank_0_only
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
        for phase in (STAGING, *PHASES)
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
