"""Run stages of tasks on this machine or as SLURM job arrays. A rerun runs only the tasks that are missing.

A stage is a datatrove pipeline, run by one of its executors. The marker `FOLDER/logs/STAGE/completions/00003`
says that task 3 is done. A stage starts when all tasks of the stage before are done. A task rewrites its
files, so a killed task leaves nothing that its next run would mistake for its own.
"""

import contextlib
import copy
import dataclasses
import json
import multiprocessing
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import loguru
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from data_prep.processes import claimed, n_cores, ordered_map
from lit_gpt.cli import InputError, progress
from lit_gpt.files import naming, write_atomically
from lit_gpt.option_types import Duration, PositiveInt


@dataclass(kw_only=True)
class ExecutionOptions:
    """Parallel tasks and SLURM."""

    executor: Literal["local", "slurm"] = "local"
    """`local`: processes on this machine. `slurm`: job arrays; submit all of them and return."""
    tasks: PositiveInt | None = None
    """Tasks to split the input files into (default: one per file, at most 1000). The result is the same for
    any number; a kill loses only the work of running tasks."""
    workers: PositiveInt | None = None
    """Tasks to run at a time (default: one per CPU of this machine; no limit with slurm)."""
    slurm_partition: str | None = None
    """Partition to submit to."""
    slurm_time: Duration = "08:00:00"
    """Time limit of a job, which runs one task."""
    slurm_memory_gb: PositiveInt = 4
    """Memory per CPU of a job, in GB."""
    slurm_args: dict[str, str] = field(default_factory=dict)
    """More arguments for sbatch, for example `{account: nlp}`."""
    slurm_python: str | None = None
    """Command that starts Python in a job, for example `apptainer exec llammlein.sif python` (default: this
    Python)."""
    stage: str | None = None
    """Internal: job scripts pass it to run one task of this stage."""

    def n_tasks(self, n_files: int) -> int:
        return self.tasks or min(n_files, 1000)


@dataclass(frozen=True)
class Stage:
    """A datatrove pipeline and the number of tasks that share its work."""

    name: str
    pipeline: list[Callable[..., Any]]
    """Steps: each is called with (documents, rank, number of tasks) and returns documents."""
    tasks: int
    folder: Path
    """Where `logs/NAME/` goes."""
    cpus: int = 1
    """CPUs per task, for SLURM."""

    @property
    def logs(self) -> Path:
        """Folder of the completion markers and counts of the tasks."""
        return self.folder / "logs" / self.name


def run_stages(stages: list[Stage], options: ExecutionOptions, folder: Path, command: Path) -> bool:
    """Run the stages one after the other, or submit them. Returns True if all work is done on return.

    Args:
        folder: only one run at a time may work there.
        command: the Python file that SLURM jobs run with `--config FOLDER/options.json --stage NAME`; it must
            call this function with the same stages.
    """
    if options.stage is not None:
        by_name = {stage.name: stage for stage in stages}
        if (stage := by_name.get(options.stage)) is None:
            raise InputError(f"--stage {options.stage} is none of {', '.join(by_name)}; jobs give it")
        with naming(stage.folder):
            _SlurmExecutor(stage, options).run()
        return False
    with claimed(folder):
        write_json(folder / "options.json", dataclasses.asdict(options))
        if options.executor == "slurm":
            return _submit(stages, options, folder, command)
        for stage in stages:
            _LocalExecutor(stage, options.workers or n_cores()).run()
        return True


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; create its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _peak_megabytes() -> float:
    """Since `_forget_peak`. `ru_maxrss` begins with the peak of the process that started this one."""
    try:
        [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except (OSError, ValueError):  # not Linux, or a sandbox that does not tell
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(kilobytes) / 1024


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # kernels may refuse it: then the peak of earlier tasks counts too
        Path("/proc/self/clear_refs").write_text("5")


class MeasureUse(PipelineStep):
    """Consumes a task's documents and records `cpu_seconds`, with those of processes that the task started
    and ended, and `peak_megabytes` (maximum resident set)."""

    type, name = "MEASURE", "use"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        _forget_peak()
        begun = _cpu_seconds()
        for _ in data:
            pass
        self.stat_update("cpu_seconds", value=_cpu_seconds() - begun)
        self.stat_update("peak_megabytes", value=_peak_megabytes())


class _LocalExecutor(PipelineExecutor):
    """Runs tasks in processes on this machine.

    datatrove's own executor waits forever for a task whose process was killed, for example by the kernel's
    OOM killer. This one stops with an error.
    """

    def __init__(self, stage: Stage, workers: int) -> None:
        super().__init__([*stage.pipeline, MeasureUse()], str(stage.logs))
        self.tasks = stage.tasks
        self.workers = workers
        self.name = stage.name

    @property
    def world_size(self) -> int:
        return self.tasks

    get_distributed_env = LocalPipelineExecutor.get_distributed_env

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if self.tasks == 1:  # a long single task shows its own progress
            for rank in ranks:
                _run_task(self, rank)
            return
        with progress(
            description=self.name, total=self.tasks, initial=self.tasks - len(ranks), unit=" tasks"
        ) as bar:
            for _ in ordered_map(partial(_run_task, self), ranks, min(self.workers, max(len(ranks), 1))):
                bar.update()


def _run_task(executor: PipelineExecutor, rank: int) -> None:
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a task of minutes at once
    loguru.logger.disable("datatrove")  # it logs every step of every task to the terminal
    with naming(executor.logging_dir.path):  # datatrove's own files are written without a name in errors
        copy.deepcopy(executor)._run_for_rank(rank)


_LARGEST_ARRAY = 1001
"""datatrove makes several arrays of more tasks, and lets the next stage wait for the last of them only."""


class _SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's job arrays, but a job runs our command again instead of unpickling its work."""

    def __init__(self, stage: Stage, options: ExecutionOptions, task_command: str = "") -> None:
        super().__init__(
            [*stage.pipeline, MeasureUse()],
            stage.tasks,
            options.slurm_time,
            options.slurm_partition,
            cpus_per_task=stage.cpus,
            mem_per_cpu_gb=options.slurm_memory_gb,
            workers=options.workers or -1,
            job_name=stage.name,
            qos="",
            # Else the jobs of later stages wait forever for a stage that has failed.
            sbatch_args={"kill-on-invalid-dep": "yes"} | options.slurm_args,
            logging_dir=str(stage.logs),
        )
        self.task_command = task_command

    def get_launch_file_contents(self, sbatch_args: dict, run_script: str) -> str:
        quoted = {name: shlex.quote(str(value)) if value else "" for name, value in sbatch_args.items()}
        return super().get_launch_file_contents(quoted, f"srun -n 1 {self.task_command}")

    def launch_merge_stats(self) -> None:
        """Do nothing: the last stage of each command sums up the counts."""


def _submit(stages: list[Stage], options: ExecutionOptions, folder: Path, command: Path) -> bool:
    """Submit each stage as a job array that waits for the one before. True if nothing was left to submit."""
    if not options.slurm_partition:
        raise InputError("--executor slurm needs --slurm_partition (`sinfo` lists them)")
    if (n_tasks := max(stage.tasks for stage in stages)) > _LARGEST_ARRAY:
        raise InputError(
            f"--tasks {n_tasks:,}: SLURM runs a stage as one array, of at most {_LARGEST_ARRAY:,}"
        )
    if shutil.which("sbatch") is None:
        raise InputError("--executor slurm: sbatch is not in PATH; run this on a login node of the cluster")
    _refuse_while_queued(folder)
    loguru.logger.disable("datatrove")
    python = options.slurm_python or shlex.quote(sys.executable)
    again = f"{python} {shlex.quote(str(command.resolve()))} --config {shlex.quote(str(folder.resolve()))}"
    previous, jobs = None, []
    for stage in stages:
        executor = _SlurmExecutor(stage, options, f"{again}/options.json --stage {stage.name}")
        executor.depends = previous
        try:
            executor.run()
        except subprocess.CalledProcessError as error:
            hint = f"fix what stops stage {stage.name} and run again"
            raise InputError(f"sbatch refuses, as it says above: {hint}") from error
        previous = executor
        if executor.job_id != -1:
            jobs.append(executor.job_id)
            write_json(folder / "slurm_jobs.json", jobs)
            n_tasks = len(executor.get_incomplete_ranks())
            print(f"{stage.name}: {n_tasks} tasks in SLURM job {executor.job_id}")
    return not jobs


def _refuse_while_queued(folder: Path) -> None:
    """Refuse if earlier jobs are queued: two jobs of one task would write the same files."""
    path = folder / "slurm_jobs.json"
    if not path.exists():
        return
    jobs = ",".join(json.loads(path.read_text(encoding="utf-8")))
    # SLURM forgets jobs that ended long ago; squeue then fails and prints none.
    queue = subprocess.run(["squeue", "--noheader", "--format=%A", f"--jobs={jobs}"], stdout=subprocess.PIPE)
    if active := sorted(set(queue.stdout.decode().split())):
        raise InputError(
            f"jobs {', '.join(active)} still work on {folder}: wait for them, or `scancel` them and run again"
        )
