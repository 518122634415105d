"""What a run reports: metrics.csv with every step, validation.csv, boards, the progress line."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import BoundedSemaphore

from tqdm import tqdm

from pretrain.monitor.boards import close_boards, open_boards
from pretrain.monitor.csv_file import CsvFile, Row, columns_of, number, read_rows
from pretrain.monitor.save_errors import SaveErrors

MAX_REPORTS = 1000  # that wait for a disk that hangs; then training waits, too


@dataclass
class StepMetrics:
    """A line of metrics.csv; what was not measured at a step stays empty.

    loss is the mean over the step's targets in nats, grad_norm the norm before clipping, tokens the targets
    since the run began, skipped 1 where a gradient was not finite. Speeds are means since the line before
    that has them: tokens_per_second counts targets on all devices, masked ones too, data_wait_seconds the
    time a step waited for its batch, mfu and mfu_documents are shares of the devices' peak (see
    model/flops.py). restart counts how often the run was continued.
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


COLUMNS = columns_of(StepMetrics)


@dataclass
class ValidationLine:
    """A line of validation.csv: one store, after `step` steps, in a stage ('' in a run without stages).

    loss is the mean over the store's targets in nats; bits_per_byte is empty where bytes are not known.
    """

    step: int
    stage: str
    store: str
    targets: int
    loss: float
    bits_per_byte: float | None


class MetricsWriter:
    """Writes on rank 0, in a thread of its own.

    A run continued at a step first drops what it will do again: the lines after that step, and validations at
    that step which belong to a stage that has not begun.

    Args:
        begun: The stages that began before `first_step` - 1.

    Raises:
        OSError: metrics.csv cannot be written at all.
        InputError: `wandb_project` is given and the package is missing.
    """

    def __init__(
        self,
        out_dir: Path,
        first_step: int,
        wandb_project: str | None,
        errors: SaveErrors,
        begun: Collection[str] = ("",),
    ) -> None:
        last_step, is_new = first_step - 1, first_step == 1

        def is_past(row: Row) -> bool:
            return int(row["step"]) <= last_step

        def is_past_validation(row: Row) -> bool:
            return int(row["step"]) < last_step or (is_past(row) and row["stage"] in begun)

        self._errors = errors
        self._metrics = CsvFile(out_dir / "metrics.csv", StepMetrics, None if is_new else is_past, errors)
        kept = self._metrics.kept
        self.restart = 0 if is_new else 1 + max((int(row.get("restart") or 0) for row in kept), default=0)
        if self._metrics.was_read and (last := int(kept[-1]["step"]) if kept else 0) < last_step:
            errors.warn(f"{self._metrics.path} has lost the lines of steps {last + 1} to {last_step}")
        keep = None if is_new else is_past_validation
        self._validation = CsvFile(out_dir / "validation.csv", ValidationLine, keep, errors, create=False)
        self._validated = int(self._validation.kept[-1]["step"]) if self._validation.kept else None
        self._boards = open_boards(out_dir, first_step, wandb_project, errors)
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._room = BoundedSemaphore(MAX_REPORTS)
        self._last: Future[None] | None = None

    def write(self, lines: Sequence[StepMetrics]) -> None:
        """Append lines; the last one goes to the boards too. Returns at once, unless too much is waiting."""
        shown = [(line.step, asdict(line)) for line in lines[-1:]]
        self._submit(lambda: self._write(self._metrics, lines, shown))

    def write_validation(self, lines: Sequence[ValidationLine]) -> None:
        """Append the lines of one validation, and show them by store on the boards. Returns as `write`.

        At a border two stages validate after the same step; the second has other names, for Weights & Biases
        keeps one value of a name and step.
        """
        at = "_at_stage_start" if lines and lines[0].step == self._validated else ""
        self._validated = lines[-1].step if lines else self._validated
        shown = [
            (n.step, {f"val_loss{at}/{n.store}": n.loss, f"bits_per_byte{at}/{n.store}": n.bits_per_byte})
            for n in lines
        ]
        self._submit(lambda: self._write(self._validation, lines, shown))

    def flush(self) -> None:
        """Wait until what was given so far is on disk, or could not be written."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """Write what is left; try once more what could not be written."""
        self.write([])
        self.write_validation([])
        self.flush()
        self._thread.shutdown()

    def close_boards(self) -> bool:
        """Show all that was logged, after `close`. Whether that ended in time."""
        return close_boards(self._boards, self._errors)

    def _submit(self, write: Callable[[], None]) -> None:
        self._room.acquire()
        self._last = self._thread.submit(write)

    def _write(
        self, file: CsvFile, lines: Sequence[object], shown: Sequence[tuple[int, Mapping[str, float | None]]]
    ) -> None:
        self._room.release()
        file.append(lines)
        for step, figures in shown:
            values = {name: v for name, v in figures.items() if v is not None and name != "step"}
            for board in self._boards:
                board.log(values, step)


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

    def update(self, metrics: StepMetrics, epoch: str, seconds_per_step: float | None) -> None:
        """Show a step's figures."""
        parts = [f"{epoch}  {tqdm.format_sizeof(metrics.tokens)} tokens  loss {metrics.loss:.4f}"]
        if metrics.val_loss is not None:
            parts.append(f"val {metrics.val_loss:.4f}")
        parts.append(f"norm {metrics.grad_norm:.2f}  lr {metrics.learning_rate:.2e}")
        if metrics.tokens_per_second is not None:
            parts.append(f"{metrics.tokens_per_second:,.0f} tok/s")
        if metrics.mfu is not None:
            parts.append(f"mfu {metrics.mfu:.1%}")
        if seconds_per_step is not None:
            left = seconds_per_step * (self._max_steps - metrics.step)
            parts.append(f"eta {tqdm.format_interval(int(left))}")
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
    _, rows = read_rows(path, StepMetrics)
    return [{name: number(row.get(name)) for name in COLUMNS} for row in rows]


def read_validation(path: Path) -> list[ValidationLine]:
    """The lines of a validation.csv, in the order in which they were measured.

    Raises:
        InputError: no such file, or not one of validations.
    """
    _, rows = read_rows(path, ValidationLine)
    return [
        ValidationLine(
            int(row["step"]),
            row["stage"],
            row["store"],
            int(row["targets"]),
            float(row["loss"]),
            number(row.get("bits_per_byte")),
        )
        for row in rows
    ]
