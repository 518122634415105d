"""What a run reports: metrics.csv with every step, TensorBoard, Weights & Biases, the progress line."""

import csv
import os
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lit_gpt.cli import InputError


@dataclass
class StepMetrics:
    """A line of metrics.csv; what was not measured at a step stays empty.

    loss is the mean over the step's targets in nats, grad_norm the norm before clipping, tokens the targets
    since the run began, skipped 1 where a gradient was not finite. Speeds are means since the line before
    that has them: tokens_per_second counts targets on all devices, data_wait_seconds the time a step waited
    for its batch, mfu and mfu_documents are shares of the devices' peak (lit_gpt/flops.py). restart counts
    how often the run was continued.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    skipped: int
    restart: int
    val_loss: float | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    data_wait_seconds: float | None = None
    mfu: float | None = None
    mfu_documents: float | None = None
    peak_memory_gb: float | None = None


COLUMNS = [field.name for field in fields(StepMetrics)]


class MetricsWriter:
    """Writes on rank 0. A run continued at a step first drops the lines after it: they are trained again."""

    def __init__(self, out_dir: Path, first_step: int, wandb_project: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # only here: whoever reads metrics does without

        self._path = out_dir / "metrics.csv"
        self.restart = _cut_csv(self._path, first_step)
        self._tensorboard = SummaryWriter(str(out_dir / "tensorboard"), purge_step=first_step)
        self._wandb = _start_wandb(wandb_project, out_dir) if wandb_project else None

    def write(self, lines: list[StepMetrics]) -> None:
        """Append lines and force them to disk; the last one goes to TensorBoard too."""
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            for line in lines:
                writer.writerow({name: _cell(value) for name, value in asdict(line).items()})
            file.flush()
            os.fsync(file.fileno())
        for line in lines[-1:]:
            values = {k: v for k, v in asdict(line).items() if v is not None and k != "step"}
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, line.step)
            if self._wandb is not None:
                self._wandb.log(values, step=line.step)

    def close(self) -> None:
        """Flush TensorBoard and Weights & Biases."""
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class ProgressLine:
    """A bar on a terminal, a plain line at each log step elsewhere."""

    def __init__(self, first_step: int, max_steps: int, enabled: bool) -> None:
        self._max_steps = max_steps
        self._enabled = enabled
        self._bar = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(total=max_steps, initial=first_step - 1, unit="step", dynamic_ncols=True)

    def update(self, metrics: StepMetrics, epoch: str, eta_seconds: float | None) -> None:
        """Show a step's figures."""
        parts = [f"{epoch}  {tqdm.format_sizeof(metrics.tokens)} tokens  loss {metrics.loss:.4f}"]
        if metrics.val_loss is not None:
            parts.append(f"val {metrics.val_loss:.4f}")
        parts.append(f"norm {metrics.grad_norm:.2f}  lr {metrics.learning_rate:.2e}")
        if metrics.tokens_per_second is not None:
            parts.append(f"{metrics.tokens_per_second:,.0f} tok/s")
        if metrics.mfu is not None:
            parts.append(f"mfu {metrics.mfu:.1%}")
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(parts), refresh=False)
            self._bar.update(metrics.step - self._bar.n)
        elif self._enabled:
            eta = "" if eta_seconds is None else f"  eta {tqdm.format_interval(int(eta_seconds))}"
            print(f"step {metrics.step}/{self._max_steps}  {'  '.join(parts)}{eta}", flush=True)

    def message(self, text: str) -> None:
        """A line of its own that does not tear the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._enabled:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the bar where it is."""
        if self._bar is not None:
            self._bar.close()


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The lines of a metrics.csv, empty cells as None.

    Raises:
        InputError: no such file, or another kind of file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder of a run that has trained")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise InputError(f"{path}: not a metrics file of this version (columns {reader.fieldnames})")
        # A kill in the middle of a write leaves at most a torn last line.
        whole = (row for row in reader if None not in row.values())
        return [{name: float(cell) if cell else None for name, cell in row.items()} for row in whole]


def _cut_csv(path: Path, first_step: int) -> int:
    """Keep the lines before first_step; returns the number of the coming restart, 0 for a new run."""
    kept = []
    if path.is_file() and first_step > 1:
        kept = [row for row in read_metrics(path) if (row["step"] or 0) < first_step]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in kept:
            writer.writerow({name: _cell(row[name], name in _INTEGERS) for name in COLUMNS})
    temporary.replace(path)
    return int(max((row["restart"] or 0 for row in kept), default=0)) + 1 if kept else 0


_INTEGERS = {field.name for field in fields(StepMetrics) if field.type is int}


def _cell(value: float | None, integer: bool = False) -> str:
    """repr keeps every bit of a float; an empty cell is None."""
    if value is None:
        return ""
    return repr(int(value)) if integer else repr(value)


def _start_wandb(project: str, out_dir: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError("--wandb_project needs the package wandb: pip install wandb") from error
    return wandb.init(project=project, name=out_dir.name, dir=str(out_dir), resume="allow")
