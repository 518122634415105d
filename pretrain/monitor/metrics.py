"""What a run reports: metrics.csv with every step, TensorBoard, Weights & Biases, the progress line."""

import csv
import io
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import BoundedSemaphore

from tqdm import tqdm

from lit_gpt.cli import InputError
from lit_gpt.files import read_bounded, rename, sync, unused_path, write_atomically
from pretrain.monitor.boards import close_boards, open_boards
from pretrain.monitor.save_errors import SaveErrors

MAX_BYTES = 4 << 30
MAX_REPORTS = 1000  # that wait for a disk that hangs; then training waits, too
MAX_UNWRITTEN = 100_000  # lines that wait for a disk that refuses, about 50 MB; then the oldest are lost


@dataclass
class StepMetrics:
    """A line of metrics.csv; what was not measured at a step stays empty.

    loss is the mean over the step's targets in nats, grad_norm the norm before clipping, tokens the targets
    since the run began, skipped 1 where a gradient was not finite. Speeds are means since the line before
    that has them: tokens_per_second counts targets on all devices, data_wait_seconds the time a step waited
    for its batch, mfu and mfu_documents are shares of the devices' peak (see model/flops.py). restart counts
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
    """Writes on rank 0, in a thread of its own. What cannot be written is kept and comes with the next lines.

    A run continued at a step first drops the lines after it: they are trained again.

    Raises:
        OSError: metrics.csv cannot be written at all.
        InputError: `wandb_project` is given and the package is missing.
    """

    def __init__(self, out_dir: Path, first_step: int, wandb_project: str | None, errors: SaveErrors) -> None:
        self._path = out_dir / "metrics.csv"
        self._errors = errors
        self._columns, self.restart = _cut_csv(self._path, first_step, errors)
        self._size = self._path.stat().st_size
        self._unwritten: list[StepMetrics] = []
        self._boards = open_boards(out_dir, first_step, wandb_project, errors)
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._room = BoundedSemaphore(MAX_REPORTS)
        self._last: Future[None] | None = None

    def write(self, lines: list[StepMetrics]) -> None:
        """Append lines; the last one goes to the boards too. Returns at once, unless too much is waiting."""
        self._room.acquire()
        self._last = self._thread.submit(self._write, lines)

    def flush(self) -> None:
        """Wait until what was given so far is on disk, or could not be written."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """Write what is left; try once more what could not be written."""
        self.write([])
        self.flush()
        self._thread.shutdown()

    def close_boards(self) -> bool:
        """Show all that was logged, after `close`. Whether that ended in time."""
        return close_boards(self._boards, self._errors)

    def _write(self, lines: list[StepMetrics]) -> None:
        self._room.release()
        self._unwritten += lines
        del self._unwritten[:-MAX_UNWRITTEN]
        try:
            if self._unwritten:
                self._append(self._unwritten)
        except OSError as error:
            self._errors.failed("metrics.csv", f"{self._path} cannot be written: {error.strerror}")
        else:
            self._unwritten.clear()
            self._errors.succeeded("metrics.csv")
        for line in lines[-1:]:
            values = {k: v for k, v in asdict(line).items() if v is not None and k != "step"}
            for board in self._boards:
                board.log(values, line.step)

    def _append(self, lines: list[StepMetrics]) -> None:
        """Add lines and force them to disk; what an attempt before left half written is cut off."""
        with self._path.open("ab") as file:
            size = min(file.tell(), self._size)
            file.truncate(size)
            header = [] if size else [dict(zip(self._columns, self._columns, strict=True))]
            file.write(_csv(self._columns, [*header, *map(_cells, lines)]).encode())
            self._size = sync(file)


class ProgressLine:
    """A bar on a terminal, a plain line at each log step elsewhere."""

    def __init__(self, first_step: int, max_steps: int, enabled: bool) -> None:
        self._max_steps = max_steps
        self._enabled = enabled
        self._bar = None
        if enabled and sys.stderr.isatty():
            # Without tqdm's own time left, which is that of the last few steps.
            self._bar = tqdm(
                total=max_steps,
                initial=first_step - 1,
                dynamic_ncols=True,
                bar_format="step {n_fmt}/{total_fmt}|{bar}| [{elapsed}{postfix}]",
            )

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
        if eta_seconds is not None:
            parts.append(f"eta {tqdm.format_interval(int(eta_seconds))}")
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(parts), refresh=False)
            self._bar.update(metrics.step - self._bar.n)
        elif self._enabled:
            print(f"step {metrics.step}/{self._max_steps}  {'  '.join(parts)}", flush=True)

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
    """The lines of a metrics.csv, by the columns of StepMetrics; None where a cell is empty or not there.

    Raises:
        InputError: no such file, or not one of metrics.
    """
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file; give the folder of a run that has trained")
    _, rows = _read_rows(path)
    return [{name: _number(row.get(name)) for name in COLUMNS} for row in rows]


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns, of which another revision may have fewer or more, and the cells of each complete line."""
    try:
        text = read_bounded(path, MAX_BYTES).decode()
        # A kill in the middle of a write leaves at most a torn last line.
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        columns = list(reader.fieldnames or [])
        if columns[:2] != COLUMNS[:2]:
            raise InputError(f"{path}: not a metrics file (it begins with {text[:20]!r})")
        rows = [row for row in reader if None not in row.values()]
        for row in rows:
            for name in COLUMNS:
                _number(row.get(name))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return columns, rows


def _cut_csv(path: Path, first_step: int, errors: SaveErrors) -> tuple[list[str], int]:
    """Keep the lines before first_step. A file that cannot be read is moved aside: no resume depends on it.

    Returns:
        The file's columns, and the number of the coming restart, 0 for a new run.
    """
    columns, kept, restart = COLUMNS, list[dict[str, str]](), int(first_step > 1)
    if first_step > 1 and os.path.lexists(path):
        try:
            found, rows = _read_rows(path)
            columns = [*found, *(name for name in COLUMNS if name not in found)]
            kept = [row for row in rows if int(row["step"]) < first_step]
            restart += max((int(row.get("restart") or 0) for row in kept), default=0)
            if (last := int(kept[-1]["step"]) if kept else 0) < first_step - 1:
                errors.warn(f"{path} has lost the lines of steps {last + 1} to {first_step - 1}")
        except (InputError, ValueError) as error:
            aside = unused_path(path.with_name("metrics.damaged.csv"))
            rename(path, aside)
            errors.warn(f"{error}; it is now {aside}, and metrics.csv begins anew at step {first_step}")
    write_atomically(path, _csv(columns, [dict(zip(columns, columns, strict=True)), *kept]))
    return columns, restart


def _csv(columns: list[str], rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, extrasaction="ignore").writerows(rows)
    return text.getvalue()


def _cells(line: StepMetrics) -> dict[str, str]:
    """repr keeps every bit of a float; an empty cell is None."""
    return {name: "" if value is None else repr(value) for name, value in asdict(line).items()}


def _number(cell: str | None) -> float | None:
    return float(cell) if cell else None
