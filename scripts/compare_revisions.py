#!/usr/bin/env python
"""Check that two revisions of the code train bitwise the same, as a refactor must.

    python scripts/compare_revisions.py --before HEAD~1 --train_data_dir data/train

Each revision is checked out into a temporary folder and trains there, with its own code, on the same store.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lit_gpt.checkpoint.folder import list_checkpoints, read_manifest
from lit_gpt.checkpoint.tensor_files import TensorReader
from lit_gpt.cli import InputError, run_command
from lit_gpt.option_types import PositiveInt
from pretrain.monitor.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class CompareOptions:
    """Train two revisions on the same data and compare every loss and every weight bitwise."""

    train_data_dir: list[str]
    """Token store(s)."""
    before: str = "HEAD"
    """Revision to compare with."""
    after: str | None = None
    """Revision to compare; default: the working tree."""
    flags: list[str] = field(default_factory=list)
    """Further options of the trainer as NAME=VALUE, the same for both."""
    steps: PositiveInt = 20
    """Optimizer steps."""


def main(options: CompareOptions) -> None:
    """Train both; exit 0 if they are equal, 1 if not."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for name, revision in (("before", options.before), ("after", options.after)):
            code = _check_out(revision, Path(folder) / name) if revision else ROOT
            out_dir = Path(folder) / f"{name}-run"
            _train(code, out_dir, options)
            runs.append(out_dir)
        difference = first_difference(*runs)
    label = f"{options.before} and {options.after or 'the working tree'}"
    if difference is None:
        print(f"{label}: {options.steps} steps, every loss and every weight bitwise equal")
        return
    print(f"{label} differ: {difference}")
    sys.exit(1)


def first_difference(one: Path, other: Path) -> str | None:
    """Name the first step whose loss or norm differs between two runs, or the first tensor, or None."""
    rows = (read_metrics(out_dir / "metrics.csv") for out_dir in (one, other))
    for left, right in zip(*rows, strict=True):
        for name in ("loss", "grad_norm", "tokens"):
            if left[name] != right[name]:
                return f"{name} of step {left['step']:.0f} is {left[name]!r} and {right[name]!r}"
    folders = [list_checkpoints(out_dir)[-1][1] for out_dir in (one, other)]
    readers = [TensorReader(folder, read_manifest(folder).of_parts(["model"])) for folder in folders]
    for key in readers[0].keys():  # noqa: SIM118
        if not torch.equal(readers[0].read(key), readers[1].read(key)):
            return f"weights of {key}"
    return None


def _check_out(revision: str, folder: Path) -> Path:
    folder.mkdir()
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True)
    if archive.returncode != 0:
        raise InputError(f"revision {revision}: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def _train(code: Path, out_dir: Path, options: CompareOptions) -> None:
    command = [sys.executable, "pretrain/tinyllama_fabric.py", "--config", "pretrain/configs/debug_cpu.yaml"]
    command += ["--out_dir", str(out_dir), "--max_steps", str(options.steps)]
    command += ["--warmup_steps", str(min(5, options.steps))]
    command += ["--train_data_dir", *(str(Path(path).resolve()) for path in options.train_data_dir)]
    for flag in options.flags:
        name, _, value = flag.partition("=")
        command += [f"--{name}", value]
    # Bitwise equality holds for one number of threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise InputError(f"training with the code in {code} failed: {result.stderr.strip().splitlines()[-1]}")


if __name__ == "__main__":
    run_command(CompareOptions, main)
