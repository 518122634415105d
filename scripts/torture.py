#!/usr/bin/env python
"""Inject faults into a small sharded training job and its checkpoints, and check that nothing is lost.

    python scripts/torture.py --work_dir /scratch/me/torture [--faults 100] [--seed 1]

Records one run without faults: a fingerprint of every rank's weights and moments after every step. Then
starts the same run, always with `--resume auto`, until all faults have struck; each rank compares itself with
the record at every step. When a run reaches its end, its last checkpoint is compared and its datapoint log
verified, and the next run begins. The moments of the faults follow from the seed. Exits with code 1 if
anything was lost.
"""

import multiprocessing as mp
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from lit_gpt.checkpoint.folder import folder_name, list_checkpoints, verify
from lit_gpt.cli import InputError, progress, run_command
from lit_gpt.option_types import PositiveInt
from pretrain.datapoints.replay import Replay
from pretrain.options import TrainOptions
from pretrain.stages.options import resolve_stages
from scripts.bench.sample_store import sample_store
from scripts.faults.faults import KINDS, Job, Outcome, suffer
from scripts.faults.rank import BORDER, PRELOADED

SHAPE = {
    "n_layer": 2, "n_head": 2, "n_query_groups": 1, "n_embd": 32, "intermediate_size": 88, "block_size": 64
}  # fmt: skip


@dataclass
class TortureOptions:
    """Inject faults into a small sharded job, and print a table of the outcomes."""

    work_dir: Path
    """New or empty folder on the file system to test."""
    faults: PositiveInt = 100
    """Number of faults to inject."""
    seed: int = 1
    """Seed of the kinds and moments of the faults."""
    only: list[str] = field(default_factory=list)
    """Inject only faults whose name contains one of these."""
    ranks: PositiveInt = 2
    """Processes of the job; must divide 12."""
    steps: PositiveInt = 120
    """Optimizer steps of a run."""
    stages: PositiveInt = 1
    """Stages of a run, which alternate between row lengths, batch sizes, and kept and fresh moments."""
    save_step_interval: PositiveInt = 4
    """Steps between checkpoints."""
    state_dict_type: Literal["sharded", "full"] = "sharded"
    """As in the trainer."""


class Scored(NamedTuple):
    """A fault after which a start has resumed."""

    kind: str
    equal: bool
    """Whether that start was bitwise equal to the undisturbed run."""
    lost: int
    """Steps done before the fault and repeated after it."""


class Torture:
    """The runs, and the faults whose outcome the next start will show."""

    def __init__(self, options: TortureOptions, train: TrainOptions) -> None:
        self.options = options
        self.train = train
        self.times: Counter[str] = Counter()
        """Faults that struck, by kind."""
        self.scored: list[Scored] = []
        self.startup_seconds = 0.0
        self.slowest_exit = 0.0
        self.run = 1
        self.problems: list[str] = []
        self._open: list[tuple[str, int]] = []
        """Kind, and the last step completed before it."""

    @property
    def out_dir(self) -> Path:
        return self.options.work_dir / f"run-{self.run:03d}"

    def job(self, record: bool = False) -> Job:
        out_dir = self.options.work_dir / "undisturbed" if record else self.out_dir
        self.train.out_dir = str(out_dir)
        return Job(self.train, self.options.work_dir, record, self.startup_seconds)

    def note(self, outcome: Outcome, kind: str | None) -> None:
        """Score the faults that waited for this start, and add the new one to those waiting."""
        if outcome.resumed is not None:
            for waiting, reached in self._open:
                lost = max(0, reached - outcome.resumed)
                self.scored.append(Scored(waiting, outcome.different == 0, lost))
            self._open = []
        if outcome.different:
            self.problems.append(f"{self.out_dir}: step {outcome.different} differs from the undisturbed run")
        if outcome.error:
            self.problems.append(f"{self.out_dir}: {kind}: {outcome.error}")
        if outcome.complete:
            self._compare_run()
            self.run += 1
        elif kind is not None and outcome.struck:
            self.times[kind] += 1
            self._open.append((kind, outcome.reached))
            self.slowest_exit = max(self.slowest_exit, outcome.exit_seconds)

    def finish(self) -> None:
        """Run to the end without a fault, if any fault still waits."""
        if self._open and not self.problems:
            job = self.job()
            job.start()
            job.wait()
            self.note(job.outcome(), None)

    def _compare_run(self) -> None:
        try:
            for _, folder in list_checkpoints(self.out_dir):
                manifest = verify(folder)
            undisturbed = verify(self.options.work_dir / "undisturbed" / folder_name(self.options.steps))
            tensors = [name for name in manifest.files if name != "state.json"]
            if any(manifest.files[name] != undisturbed.files[name] for name in tensors):
                self.problems.append(
                    f"{self.out_dir}: the last checkpoint differs from the undisturbed run's"
                )
            *_, report = Replay(self.out_dir).verify()
            if report.differences or report.steps != self.options.steps:
                self.problems.append(f"{self.out_dir}: datapoint log: {report}")
        except InputError as error:
            self.problems.append(f"{self.out_dir}: {error}")


def main(options: TortureOptions) -> None:
    kinds = [kind for kind in KINDS if not options.only or any(part in kind for part in options.only)]
    kinds = [kind for kind in kinds if options.stages > 1 or BORDER not in kind]
    if not kinds:
        raise InputError(f"--only {' '.join(options.only)}: no such fault; known: {', '.join(KINDS)}")
    if options.work_dir.exists() and any(options.work_dir.iterdir()):
        raise InputError(f"--work_dir {options.work_dir} is not empty; give a new folder")
    options.work_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # bitwise equality holds for one number of threads
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    train_options = _train_options(options)
    mp.set_start_method("forkserver")
    mp.set_forkserver_preload(PRELOADED)  # seconds less at every start

    torture = Torture(options, train_options)
    begun = time.monotonic()
    undisturbed = torture.job(record=True)
    undisturbed.start()
    undisturbed.until(lambda: undisturbed.resumed >= 0)
    torture.startup_seconds = time.monotonic() - begun
    undisturbed.wait()
    if error := undisturbed.outcome().error:
        raise InputError(f"the run without faults failed: {error}")
    rng = random.Random(options.seed)
    waiting: list[str] = []
    with progress(total=options.faults, description="faults", unit="fault") as bar:
        while bar.n < options.faults and not torture.problems:
            waiting = waiting or rng.sample(kinds, len(kinds))
            kind = waiting.pop()
            torture.note(suffer(torture.job(), kind, rng), kind)
            bar.update(torture.times.total() - bar.n)
    torture.finish()
    _print(torture)
    if torture.problems:
        sys.exit(1)


def _train_options(options: TortureOptions) -> TrainOptions:
    shape = options.work_dir / "shape.yaml"
    shape.write_text(yaml.safe_dump(SHAPE))
    train = TrainOptions(
        train_data_dir=[sample_store(options.work_dir, vocab_size=512, megabytes=0.5)],
        out_dir="unused",
        model_name=str(shape),
        accelerator="cpu",
        resume="auto",
        devices=options.ranks,
        global_batch_size=12,
        micro_batch_size=2,
        max_steps=options.steps if options.stages == 1 else None,
        stages=_stages(options) if options.stages > 1 else None,
        warmup_steps=10,
        learning_rate=3e-3,
        min_lr=3e-4,
        save_step_interval=options.save_step_interval,
        eval_step_interval=0,
        log_step_interval=1,
        keep_last=2,
        on_save_error="continue",
        state_dict_type=options.state_dict_type,
    )
    resolve_stages(train)
    return train


def _stages(options: TortureOptions) -> list[dict[str, Any]]:
    """As long as one another, but for the first, which has what does not divide."""
    length, rest = divmod(options.steps, options.stages)
    if length == 0:
        raise InputError(f"--stages {options.stages} do not fit --steps {options.steps}: give more steps")
    stages: list[dict[str, Any]] = [{"name": "stage-0", "steps": length + rest}]
    for number in range(1, options.stages):
        longer, fresh = number % 2 == 1, number % 3 == 2
        stage = {"name": f"stage-{number}", "steps": length, "optimizer": "fresh" if fresh else "keep"}
        stages.append(stage | ({"block_size": 128, "global_batch_size": 24} if longer else {}))
    return stages


def _print(torture: Torture) -> None:
    options = torture.options
    print(
        f"\nseed {options.seed}, {options.ranks} ranks, {options.state_dict_type}, a checkpoint every "
        f"{options.save_step_interval} steps, {torture.run - 1} complete runs\n"
    )
    print("| fault | times | resumed | bitwise equal | lost steps: mean | most |\n|---|---|---|---|---|---|")
    for name, kinds in [*((kind, [kind]) for kind in KINDS if torture.times[kind]), ("**all**", KINDS)]:
        scored = [fault for fault in torture.scored if fault.kind in kinds]
        times, equal = sum(torture.times[kind] for kind in kinds), sum(fault.equal for fault in scored)
        lost = [fault.lost for fault in scored] or [0]
        print(f"| {name} | {times} | {len(scored)} | {equal} | {fmean(lost):.1f} | {max(lost)} |")
    print(f"\nlongest from a rank's death to the last rank's exit: {torture.slowest_exit:.1f} s")
    for problem in torture.problems:
        print(f"PROBLEM {problem}")


if __name__ == "__main__":
    run_command(TortureOptions, main)
