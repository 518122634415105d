"""Submitting the real batch scripts in tests, and doing to their jobs what clusters do."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.local_slurm import LocalSlurm, environment_of
from tests.pretrain.running import SMALL, steps_logged

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "cluster/exec"
MAX_STEPS = 120

# Two nodes, each task as large as a core of a small test machine can bear.
SIZE = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10"]
TRAINING = SMALL | {"global_batch_size": 8, "max_steps": MAX_STEPS, "save_step_interval": 50}


def site(**settings: object) -> dict[str, str]:
    """The environment of sbatch: this interpreter's virtual environment instead of a container."""
    given = {"VENV": sys.prefix, "OMP_NUM_THREADS": "1", "REPO": ROOT} | settings
    return {name: str(value) for name, value in given.items()}


def flags(settings: dict[str, object]) -> list[str]:
    """Options as a command takes them; lists become several words."""
    words = []
    for name, value in settings.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def step_processes(slurm: LocalSlurm, **wanted: str) -> list[tuple[int, dict[str, str]]]:
    """Process ids and variables of what srun has started, where the variables say what is wanted."""
    wanted |= {"SLURM_CONF": slurm.environment["SLURM_CONF"]}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        variables = dict(entry.split("=", 1) for entry in environment_of(process) if "=" in entry)
        if "SLURM_STEP_ID" in variables and wanted.items() <= variables.items():
            found.append((int(process.name), variables))
    return found


@dataclass
class TrainingJob:
    """A job of train_fabric.sh."""

    slurm: LocalSlurm
    id: str
    out_dir: Path
    output_file: Path

    @property
    def output(self) -> str:
        """What all its starts have printed."""
        return self.output_file.read_text() if self.output_file.exists() else ""

    @property
    def starts(self) -> list[str]:
        """For each start the checkpoint it began from."""
        return [line.rpartition(" ")[2] for line in (self.out_dir / "starts.log").read_text().splitlines()]

    def wait_for_step(self, step: int) -> None:
        """Return when the training has logged a step."""
        self.wait_until(lambda: steps_logged(self.out_dir) >= step)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        """Poll; fails with the job's output when the time passes."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not reached in time:\n{self.output[-3000:]}"
            time.sleep(0.05)

    def tasks(self) -> list[int]:
        """Process ids of the training, by rank."""
        found = step_processes(self.slurm, SLURM_JOB_ID=self.id)
        return [pid for _, pid in sorted((int(variables["SLURM_PROCID"]), pid) for pid, variables in found)]

    def signal_tasks(self, number: signal.Signals) -> None:
        """Send a signal to every task, behind SLURM's back."""
        for pid in self.tasks():
            os.kill(pid, number)

    def set_time_limit_from_now(self, minutes: int) -> None:
        """Change the limit of a job that runs or waits."""
        hours, done, _ = self.slurm.job(self.id)["RunTime"].split(":")
        limit = int(hours) * 60 + int(done) + minutes
        self.slurm.run("scontrol", "update", f"JobId={self.id}", f"TimeLimit={limit}")

    def completed(self, seconds: float = 300) -> "TrainingJob":
        """Wait for its end, which must be a success."""
        try:
            state = self.slurm.wait(self.id, seconds)["JobState"]
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.output[-3000:]}") from error
        assert state == "COMPLETED", self.output[-3000:]
        return self


def train(
    slurm: LocalSlurm,
    out_dir: Path,
    store: Path,
    *sbatch_options: str,
    site_settings=None,
    tasks_per_node: int = 1,
    **settings: object,
) -> TrainingJob:
    """Submit train_fabric.sh. Each task costs the seconds of torch's import at every start."""
    out_dir.mkdir()
    where = site(RUNS_DIR=out_dir.parent, MODEL_NAME=out_dir.name, **(site_settings or {}))
    job = slurm.submit(
        *SIZE,
        f"--ntasks-per-node={tasks_per_node}",
        f"--output={out_dir}/slurm.out",
        *sbatch_options,
        str(SCRIPTS / "train_fabric.sh"),
        *flags(TRAINING | {"train_data_dir": store} | settings),
        env=slurm.environment | where,
        cwd=ROOT,
    )
    return TrainingJob(slurm, job, out_dir, out_dir / "slurm.out")
