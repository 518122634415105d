#!/usr/bin/env python
"""Check a training job, print its plan, and submit it to SLURM.

    python scripts/submit.py --config pretrain/configs/LLaMmlein_1B.yaml --train_data_dir DIR \
        --out_dir runs/german_1B --time 24:00:00 [--dry_run]

Takes every option of pretrain/tinyllama_fabric.py and submits cluster/exec/train_fabric.sh. Where Python is
in the container only: `cluster/exec/inside.sh python scripts/submit.py ...`, then `bash OUT_DIR/submit.sh`.
"""

import dataclasses
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lit_gpt.cli import InputError, run_command
from lit_gpt.option_types import Duration, PositiveFloat, PositiveInt, parse_duration
from pretrain.launch.examine import examine
from pretrain.launch.plan import JobPlan
from pretrain.options import TrainOptions
from pretrain.stages.options import resolve_stages
from scripts.bench.measurement import measure

SITE_SETTINGS = ROOT / "cluster/exec/env.sh"
SCRIPT = ROOT / "cluster/exec/train_fabric.sh"

AGAIN = """\
#!/usr/bin/env bash
# Submits the run as scripts/submit.py has checked it; it resumes from its newest checkpoint.
set -euo pipefail
export RUNS_DIR={runs_dir} MODEL_NAME={name}
source {settings}
{submission}
"""
ONE = "{command}"
CHAIN = """\
CHAIN=$(date +%s) # identifies the jobs of this chain
export CHAIN
for _ in $(seq {count}); do
    {command}
done"""


@dataclass
class SubmitOptions(TrainOptions):
    """Check a training job, print its plan, and submit it to SLURM.

    Takes the trainer's options; --num_nodes and --devices also set the size of the job.
    """

    resume: str | None = None
    """Leave it out: a job resumes from its newest checkpoint by itself."""
    time: Duration = "24:00:00"
    """Time limit of a job; a requeued job continues the run."""
    chain: PositiveInt = 1
    """Number of jobs to submit, to run one after another where a job may not requeue itself."""
    device_memory: PositiveFloat = 80.0
    """Memory of a device in GiB; a plan that needs more is refused."""
    tokens_per_second: PositiveFloat | None = None
    """Measured throughput of one device, from which the plan computes hours."""
    sbatch_options: str = ""
    """Further options of sbatch, in one string: --sbatch_options='--qos=long --exclude=node07'."""
    measure: bool = False
    """Train for a minute on this machine to measure tokens_per_second; packs the data first if needed. Of a
    run in stages it is the one with most to train."""
    dry_run: bool = False
    """Check and print the plan; write and submit nothing. Needs no cluster."""


def main(options: SubmitOptions) -> None:
    """Check, print the plan, submit."""
    has_slurm = shutil.which("sbatch") is not None
    missing = missing_environment() if has_slurm or not options.dry_run else None
    if missing and not options.dry_run:
        resolve_stages(options)  # mistakes in the options are named before what the machine lacks
        raise InputError(missing)
    plan = examine(options)
    print_lines(plan.lines(options.device_memory))
    speed = speed_of(plan, options)
    print("".join(f"{line}\n" for line in plan.table(speed and speed.tokens_per_second)), end="")
    print_lines([*plan.warnings(), ("time", time_needed(plan, speed, options.time))])
    command = shlex.join(sbatch_command(options))
    print(f"{'submits' if options.chain == 1 else f'{options.chain} x':<8} {command}")
    if not options.dry_run:
        submit(options, command)
    elif not has_slurm:
        print(f"{'or here':<8} {shlex.join(training_command(options))}")
    elif missing:
        print(f"{'note':<8} before submitting: {missing}")


def print_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Print what and how much; at once, since a measurement may follow."""
    for name, text in lines:
        print(f"{name:<8} {text}", flush=True)


def missing_environment() -> str | None:
    """Say that the jobs' Python environment is missing: the container, or VENV where the site sets it.

    Raises:
        InputError: the site's settings cannot be read.
    """
    show = f'source {shlex.quote(str(SITE_SETTINGS))} && printf "%s\\n" "$VENV" "$IMAGE"'
    done = subprocess.run(["bash", "-c", show], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{SITE_SETTINGS}: {' '.join(done.stderr.split())}; fix it")
    venv, image = done.stdout.splitlines()
    inside_container = "APPTAINER_CONTAINER" in os.environ or "SINGULARITY_CONTAINER" in os.environ
    if venv and not Path(venv, "bin/python").exists():
        return f"VENV={venv} has no bin/python; set VENV in {SITE_SETTINGS}"
    if not venv and not inside_container and not Path(image).is_file():
        return f"IMAGE={image} does not exist; build it (cluster/README.md) or set VENV in {SITE_SETTINGS}"
    return None


class Speed(NamedTuple):
    """Of one device."""

    tokens_per_second: float
    origin: str
    """In words."""


def speed_of(plan: JobPlan, options: SubmitOptions) -> Speed | None:
    """The speed that was given, or that of the stage with most to train, measured here; None without both."""
    if options.measure:
        measured = measure(plan.longest.options)
        where = f" in stage {plan.longest.name}" if plan.has_stages else ""
        return Speed(measured.tokens_per_second, f"{measured.describe()}{where}")
    if options.tokens_per_second is not None:
        return Speed(options.tokens_per_second, f"{options.tokens_per_second:,.0f} tokens/s a device")
    return None


def time_needed(plan: JobPlan, speed: Speed | None, limit: str) -> str:
    """Describe how many hours and jobs the run takes."""
    if speed is None:
        return (
            f"jobs of {limit}; for the hours give --tokens_per_second of one device, or --measure on "
            "a machine that has one"
        )
    hours = sum(plan.hours(speed.tokens_per_second))
    jobs = math.ceil(hours * 3600 / parse_duration(limit))
    return f"{hours:.1f} h at {speed.origin}: {jobs} start(s) of {limit}"


def sbatch_command(options: SubmitOptions) -> list[str]:
    """Return the command that submits one job."""
    out_dir = Path(options.out_dir).absolute()
    gpus = 0 if options.accelerator == "cpu" else options.devices
    return [
        "sbatch",
        f"--job-name=llammlein-{out_dir.name}",
        f"--nodes={options.num_nodes}",
        f"--ntasks-per-node={options.devices}",
        f"--gpus-per-node={gpus}",
        f"--time={options.time}",
        f"--output={out_dir}/slurm-%j.out",
        # Jobs of one name and user run one after another.
        *(["--dependency=singleton", "--no-requeue"] if options.chain > 1 else []),
        *shlex.split(options.sbatch_options),
        str(SCRIPT),
        "--config",
        str(out_dir / "submitted.yaml"),
    ]


def training_command(options: SubmitOptions) -> list[str]:
    """Return the command that trains on this machine."""
    words = ["python", "pretrain/tinyllama_fabric.py", "--resume", "auto"]
    for entry in dataclasses.fields(TrainOptions):
        value = getattr(options, entry.name)
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        if value != default and entry.name != "resume":
            words += [f"--{entry.name}", *_words(value)]
    return words


def _words(value: object) -> list[str]:
    """A value as its flag takes it: tables, such as stages, as JSON."""
    values = value if isinstance(value, list) else [value]
    return [json.dumps(value)] if any(isinstance(entry, dict) for entry in values) else list(map(str, values))


def submit(options: SubmitOptions, command: str) -> None:
    """Write `submitted.yaml` and `submit.sh` into the run's folder; run the latter if sbatch is installed."""
    out_dir = Path(options.out_dir).absolute()
    out_dir.mkdir(parents=True, exist_ok=True)
    names = [entry.name for entry in dataclasses.fields(TrainOptions)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    (out_dir / "submitted.yaml").write_text(yaml.safe_dump(given))
    again = out_dir / "submit.sh"
    again.write_text(
        AGAIN.format(
            runs_dir=shlex.quote(str(out_dir.parent)),
            name=shlex.quote(out_dir.name),
            settings=shlex.quote(str(SITE_SETTINGS)),
            submission=(CHAIN if options.chain > 1 else ONE).format(command=command, count=options.chain),
        )
    )
    if shutil.which("sbatch") is None:
        print(f"sbatch is not installed here; on a machine that has it: bash {again}")
        return
    if subprocess.run(["bash", str(again)]).returncode:
        raise InputError(f"SLURM refused the job, see above; to retry: bash {again}")


if __name__ == "__main__":
    run_command(SubmitOptions, main)
