"""data.json of a datapoint log: the stage and the data (stores, seed, packing) of the steps, and gaps."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.errors import InputError
from lit_gpt.files import read_json, write_atomically
from pretrain.data.numbering import Numbering

FORMAT_VERSION = 2


@dataclass(frozen=True)
class DataPeriod:
    """What was read from `first_step` on, until the next period begins; on disk a "segment".

    A stage of the run is one period, or several where it was resumed on changed data.
    """

    name: str
    """Of the stage; empty in a run without stages."""
    first_step: int
    steps_before: int
    """Steps of the stages before."""
    global_batch_size: int
    data: dict[str, Any]
    """`TrainingData.describe()`."""

    @property
    def numbering(self) -> Numbering:
        """Which samples its steps take."""
        return Numbering(self.global_batch_size, self.steps_before, self.data.get("first_sample", 0))


@dataclass(frozen=True)
class Gap:
    """Steps of which the log has lost, or never had, the rows of all nodes or of some."""

    first_step: int
    last_step: int
    reason: str
    """`log lost` or `not logged`."""

    def __str__(self) -> str:
        return f"steps {self.first_step}-{self.last_step}: {self.reason}"


class DataFile(NamedTuple):
    """What data.json holds."""

    periods: list[DataPeriod]
    gaps: list[Gap]
    """Disjoint and ascending."""


def read_data(folder: Path) -> DataFile:
    """The content of data.json.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    path, hint = folder / "data.json", "restore it from a copy of the run"
    content = read_json(path, hint)
    try:
        if content["format_version"] not in (1, FORMAT_VERSION):
            raise ValueError(f"format {content['format_version']}, this program reads 1 and {FORMAT_VERSION}")
        of_run: dict[str, Any] = {}
        if content["format_version"] == 1:  # a run was one stage
            of_run = {"name": "", "steps_before": 0, "global_batch_size": content["global_batch_size"]}
        periods = [DataPeriod(**of_run, **period) for period in content["segments"]]
        return DataFile(periods, [Gap(**gap) for gap in content.get("gaps", [])])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): {hint}") from error


def write_data(folder: Path, data: DataFile) -> None:
    """Write data.json durably."""
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "segments": [asdict(period) for period in data.periods],
    }
    if data.gaps:
        content["gaps"] = [asdict(gap) for gap in data.gaps]
    write_atomically(folder / "data.json", json.dumps(content, indent=1) + "\n")
