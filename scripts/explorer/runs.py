"""What the page shows of a run's training: metrics.csv and validation.csv, and marks along the way."""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lit_gpt.checkpoint.folder import list_checkpoints
from lit_gpt.errors import InputError
from pretrain.datapoints.files import first_step, last_step, part_files
from pretrain.datapoints.periods import read_data
from pretrain.monitor.csv_tail import CsvTail
from scripts.explorer.aggregate import hours_of, largest_spike

AXES = {
    "step": "steps",
    "tokens": "targets seen",
    "hours": "hours of training, without validation and saving",
}


@dataclass
class Marks:
    """Steps at which something happened, ascending."""

    saves: list[int] = field(default_factory=list)
    """Checkpoints, also those that were deleted since, as far as the datapoint log tells."""
    checkpoints: dict[int, Path] = field(default_factory=dict)
    """Those that are there."""
    stages: dict[int, str] = field(default_factory=dict)
    """The first step of each stage, with its name."""


class Run:
    """A run's folder, read again at each `refresh`. What it gives is not changed later."""

    def __init__(self, folder: Path, name: str) -> None:
        """
        Raises:
            InputError: metrics.csv is not there or cannot be read.
        """
        self.folder, self.name = folder, name
        self.version = 0
        """Counts the changes."""
        self.problem = ""
        """Why the last `refresh` could not read what is there; what was read before is kept."""
        self.marks = Marks()
        self.x: dict[str, np.ndarray] = {}
        """By the names of AXES: where each line of metrics.csv lies, float64 (n_lines,)."""
        self._metrics = CsvTail(folder / "metrics.csv")
        self._validation = CsvTail(folder / "validation.csv", texts=("stage", "store"))
        self._lock = threading.Lock()
        if not (folder / "metrics.csv").is_file():
            raise InputError(f"--run {folder}: no metrics.csv there; give the out_dir of a training")
        self._read()
        if self.metrics and "loss" not in self.metrics:
            raise InputError(f"--run {folder}: its metrics.csv has no column named loss")

    def refresh(self) -> None:
        """Read what the run has added."""
        with self._lock:
            try:
                self._read()
                self.problem = ""
            except InputError as error:
                self.problem = str(error)

    def _read(self) -> None:
        changed = [file.refresh() for file in (self._metrics, self._validation)]
        marks = _read_marks(self.folder)
        if any(changed) or marks != self.marks:
            self._place(marks)
            self.version += 1

    def _place(self, marks: Marks) -> None:
        self.metrics, self.validation = self._metrics.columns, self._validation.columns
        self.marks = marks
        step = self.column("step")
        self.x = {
            "step": step,
            "tokens": self.column("tokens"),
            "hours": hours_of(self.column("step_seconds")),
        }

    def column(self, name: str) -> np.ndarray:
        """A column of metrics.csv, float64 (n_lines,); NaN where nothing was measured."""
        n_lines = self.metrics["step"].size if "step" in self.metrics else 0
        return self.metrics.get(name, np.full(n_lines, np.nan))

    def at(self, steps: np.ndarray | list[int], axis: str) -> np.ndarray:
        """Where steps lie on an axis, float64 (n,); step 0 is the beginning."""
        known, places = self.x["step"], self.x[axis]
        return np.interp(steps, np.concatenate([[0.0], known]), np.concatenate([[0.0], places]))

    def steps_between(self, axis: str, low: float | None, high: float | None) -> tuple[int, int]:
        """First and last step of a part of an axis; (1, 0) where there is none."""
        places = self.x[axis]
        first = 0 if low is None else int(np.searchsorted(places, low, "left"))
        end = places.size if high is None else int(np.searchsorted(places, high, "right"))
        steps = self.x["step"][first:end]
        return (int(steps[0]), int(steps[-1])) if steps.size else (1, 0)

    @property
    def last_step(self) -> int:
        """In metrics.csv, 0 if none."""
        step = self.column("step")
        return int(step[-1]) if step.size else 0

    def loss_at(self, step: int) -> float | None:
        """The loss of a step, None where it is not in metrics.csv."""
        steps = self.column("step")
        place = int(np.searchsorted(steps, step))
        found = place < steps.size and steps[place] == step
        return float(self.column("loss")[place]) if found else None

    def spike(self) -> int:
        """The step whose loss rises furthest above those before it; 0 without any."""
        place = largest_spike(self.column("loss"))
        return int(self.column("step")[place]) if place >= 0 else 0

    def validations(self) -> dict[str, dict[str, np.ndarray]]:
        """By store the columns `step`, `loss` and `bits_per_byte`, float64 (n_validations,).

        Runs of earlier revisions have no validation.csv but losses in metrics.csv.
        """
        names = ("step", "loss", "bits_per_byte")
        if "store" in self.validation:
            stores = self.validation["store"]
            found = ((store, stores == store) for store in dict.fromkeys(stores))
            return {store: {name: self.validation[name][own] for name in names} for store, own in found}
        losses = self.column("val_loss")
        own = np.isfinite(losses)
        columns = (self.column("step")[own], losses[own], np.full(int(own.sum()), np.nan))
        return {"validation": dict(zip(names, columns, strict=True))} if own.any() else {}

    def state(self) -> str:
        """In words: whether it is trained, and what was last heard of it."""
        if self.problem:
            return self.problem
        if (self.folder / "done").exists():
            return "finished"
        try:
            silent = time.time() - (self.folder / "metrics.csv").stat().st_mtime
        except OSError:
            return "its metrics.csv is gone"
        if (self.folder / "requeue").exists():
            return "stopped, to be continued"
        if silent < 120:
            return f"training, last heard of {silent:.0f} s ago"
        ago = f"{silent / 60:.0f} min" if silent < 7200 else f"{silent / 3600:.0f} h"
        return f"not finished, last heard of {ago} ago"


def _read_marks(folder: Path) -> Marks:
    """Of checkpoints and of the datapoint log; what cannot be read leaves no mark."""
    checkpoints = dict(list_checkpoints(folder))
    saves = set(checkpoints)
    stages: dict[int, str] = {}
    log = folder / "datapoints"
    try:
        parts = part_files(log)
        saves |= {first_step(part) - 1 for part in parts} | {last_step(parts[-1])} if parts else set()
        periods = read_data(log).periods if (log / "data.json").is_file() else []
        for period in periods:
            stages.setdefault(period.steps_before + 1, period.name)
    except (InputError, OSError, ValueError):
        pass  # the tabs below say what is wrong with the log
    return Marks(sorted(saves - {0}), checkpoints, {step: name for step, name in stages.items() if name})


def open_runs(folders: list[Path]) -> list[Run]:
    """Open runs, each under the shortest name that no other has.

    Raises:
        InputError: one of them is no run.
    """
    short = [folder.name for folder in folders]
    names = [
        folder.name if folder.name and short.count(folder.name) == 1 else str(folder) for folder in folders
    ]
    return [Run(folder, name) for folder, name in zip(folders, names, strict=True)]
