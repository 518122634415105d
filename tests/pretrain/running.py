"""Running the real training command in tests."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoint.folder import folder_name
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.monitor.metrics import read_metrics
from pretrain.options import TrainOptions
from pretrain.trainer import Trainer
from tests.scripts.our_model import reader_of

ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "model_name": "tiny_100K",
    "accelerator": "cpu",
    "global_batch_size": 4,
    "micro_batch_size": 2,
    "max_steps": 40,
    "warmup_steps": 5,
    "learning_rate": 3e-3,
    "min_lr": 3e-4,
    "save_step_interval": 20,
    "eval_step_interval": 20,
    "eval_iters": 3,
    "log_step_interval": 5,
}


WANDB_STAND_IN = """
from pathlib import Path

class init:
    def __init__(self, project, name, dir, resume):
        self.folder = Path(dir)

    def log(self, values, step):
        pass

    def finish(self):
        print("wandb ends, done is there:", (self.folder / "done").exists())
"""


def command(out_dir: Path, store: Path, **flags: object) -> list[str]:
    """The training command for a small run; a flag of None is left out."""
    settings = SMALL | {"train_data_dir": store, "out_dir": out_dir} | flags
    parts = [sys.executable, str(ROOT / "pretrain/tinyllama_fabric.py")]
    for name, value in settings.items():
        if value is not None:
            parts += [f"--{name}", str(value)]
    return parts


def environment() -> dict[str, str]:
    """One thread: bitwise equality holds for one number of threads."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def train(out_dir: Path, store: Path, **flags: object) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        command(out_dir, store, **flags), capture_output=True, text=True, timeout=300, env=environment()
    )


def start(
    out_dir: Path, store: Path, output_file: Path | None = None, **flags: object
) -> subprocess.Popen[str]:
    """Run in the background, its output in OUT/output.txt if not elsewhere, in a process group of its own."""
    out_dir.mkdir(parents=True, exist_ok=True)
    with (output_file or out_dir / "output.txt").open("a") as output:
        return subprocess.Popen(
            command(out_dir, store, **flags),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            start_new_session=True,
        )


def open_run(out_dir: Path, store: Path, kind: type[Trainer] = Trainer, **flags: Any) -> Trainer:
    """A run of one rank in this process, before its first step."""
    settings: dict[str, Any] = SMALL | {"train_data_dir": [str(store)], "out_dir": str(out_dir)}
    options = TrainOptions(**settings | flags)
    options.check()
    return kind(options, Watchdog(StopRequest()))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Poll until the condition holds; fails if the process ends or the time passes before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.01)


def steps_logged(out_dir: Path) -> int:
    """Last step in metrics.csv, 0 if none."""
    path = out_dir / "metrics.csv"
    lines = path.read_text().splitlines() if path.is_file() else []
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0


def losses(out_dir: Path) -> list[float]:
    """Loss of every step, which must be numbered from 1 without gap or repeat."""
    rows = read_metrics(out_dir / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def checkpoint_tensors(out_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, weights and moments, whole."""
    tensors = {}
    for part in ("model", "optim"):
        reader = reader_of(out_dir / folder_name(step), part)
        tensors |= {f"{part}/{key}": reader.read(key) for key in reader.keys()}  # noqa: SIM118
    return tensors


def assert_same_checkpoint(one: Path, other: Path, step: int) -> None:
    """Bitwise equality of every tensor."""
    left, right = checkpoint_tensors(one, step), checkpoint_tensors(other, step)
    assert left.keys() == right.keys()
    different = [key for key in left if not torch.equal(left[key], right[key])]
    assert not different, different


def ranks(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks that Fabric's own launcher started, rank 0 first."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [process.pid, *sorted(int(child) for child in children)]
