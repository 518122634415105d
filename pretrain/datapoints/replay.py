"""Compare the datapoint log with the data: rebuild what was fed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from lit_gpt.errors import InputError
from lit_gpt.rows.rows import row_checksum
from lit_gpt.store.token_store import TokenStore
from pretrain.data.numbering import Numbering
from pretrain.data.row_reader import RowReader, RowTable
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.files import (
    SEGMENTS,
    RunLog,
    first_step,
    from_lists,
    last_step,
    read_row_groups,
)
from pretrain.datapoints.periods import DataPeriod

MESSAGES_KEPT = 20
_PLACE = ("store", "shard", "row")


@dataclass
class Report:
    """What `Replay.verify` has seen."""

    steps: int = 0
    rows: int = 0
    segments: int = 0
    differences: int = 0
    messages: list[str] = field(default_factory=list)
    """Of the first differences."""

    def add(self, count: int, message: str) -> None:
        """Note `count` differences, of which the message names the first."""
        self.differences += count
        if len(self.messages) < MESSAGES_KEPT:
            self.messages.append(message)


class Replay:
    """A run's log together with the data it was fed from."""

    def __init__(
        self,
        run_dir: Path | str,
        train_data_dir: Sequence[str] | None = None,
        packing_dir: str | None = None,
    ) -> None:
        """`train_data_dir`, `packing_dir`: where stores and packings are now, if they have moved.

        Raises:
            InputError: the log cannot be read, or one of the stores.
        """
        self.log = RunLog(run_dir)
        if not self.log.periods:
            raise InputError(f"{self.log.folder} has lost what the run read: no step can be rebuilt")
        self._moved = {TokenStore.open(Path(path)).fingerprint: path for path in train_data_dir or ()}
        self._packing_dir = packing_dir
        self._opened: dict[int, TrainingData] = {}

    def data(self, period: DataPeriod) -> TrainingData:
        """The data of a period.

        Raises:
            InputError: a store is missing or is not what the run read.
        """
        if period.first_step not in self._opened:
            self._opened[period.first_step] = TrainingData.reopen(
                period.data, self._folders(period) if self._moved else None, self._packing_dir
            )
        return self._opened[period.first_step]

    def _folders(self, period: DataPeriod) -> list[str]:
        """Where a period's stores are now: stages may read different ones, in any order."""
        folders = []
        for store, entry in zip(period.data["stores"], period.data["options"]["train_data_dir"], strict=True):
            if store["store"] not in self._moved:
                raise InputError(
                    f"--train_data_dir: the data is no longer what the run read: none of these is {entry}, "
                    f"with the fingerprint {store['store'][:12]}"
                )
            folders.append(self._moved[store["store"]])
        return folders

    def verify(self) -> Iterator[Report]:
        """Rebuild every row by the order's function and compare it with what is logged.

        Yields:
            The one report, after each group of rows.
        """
        report = Report()
        next_step = self.log.periods[0].first_step
        for parts in _overlapping(self.log.parts):
            next_step = self._check_samples(parts, next_step, report)
            for part in parts:
                for table in read_row_groups(part):
                    self._check_rows(table, report)
                    yield report

    def _check_samples(self, parts: list[Path], next_step: int, report: Report) -> int:
        """Each sample in its step, none twice, none missing; returns the step after the last."""
        tables = [table for part in parts for table in read_row_groups(part, ["step", "sample"])]
        step = np.concatenate([table["step"].to_numpy() for table in tables])
        sample = np.concatenate([table["sample"].to_numpy() for table in tables])
        which, of_its_step = self.log.period_of(step), np.zeros(step.size, bool)
        for number, period in enumerate(self.log.periods):
            mine = which == number
            of_its_step[mine] = period.numbering.step_of(sample[mine]) == step[mine]
        if not of_its_step.all():
            at = int(np.argmin(of_its_step))
            wrong = int((~of_its_step).sum())
            report.add(wrong, f"step {step[at]}: sample {sample[at]} is not one of this step's")
        end = max(int(step[of_its_step].max(initial=0)) + 1, next_step)
        for number, (period, last) in enumerate(self.log.spans()):
            of_period = sample[of_its_step & (which == number)]
            begin = min(max(next_step, period.first_step), last + 1)
            self._check_complete(period.numbering, of_period, begin, max(min(end, last + 1), begin), report)
        return end

    def _check_complete(
        self, numbering: Numbering, sample: np.ndarray, first_step: int, end_step: int, report: Report
    ) -> None:
        """The samples of the steps [first_step, end_step) of one period are logged, each once."""
        first, end = numbering.first_sample_of(first_step), numbering.first_sample_of(end_step)
        report.steps += self._outside_gaps(numbering, first, end)[0] // numbering.global_batch_size
        found, times = np.unique(sample, return_counts=True)
        repeated = found[(times > 1) | (found < first)]
        bounds = np.concatenate([[first - 1], found[found >= first], [end]])
        holes = [(int(bounds[at]) + 1, int(bounds[at + 1])) for at in np.flatnonzero(np.diff(bounds) > 1)]
        outside = [self._outside_gaps(numbering, *hole) for hole in holes]
        missing = [(count, sample) for count, sample in outside if count]
        if len(repeated):
            at = int(repeated[0])
            report.add(len(repeated), f"step {numbering.step_of(at)}: sample {at} is logged more than once")
        if missing:
            at = missing[0][1]
            report.add(
                sum(count for count, _ in missing),
                f"step {numbering.step_of(at)}: sample {at} is not logged",
            )

    def _outside_gaps(self, numbering: Numbering, first: int, end: int) -> tuple[int, int]:
        """How many of the samples [first, end) of a period are in no gap, and the first of them."""
        n_samples, at = end - first, first
        for gap in self.log.gaps:
            gap_first = numbering.first_sample_of(gap.first_step)
            gap_end = numbering.first_sample_of(gap.last_step + 1)
            n_samples -= max(0, min(end, gap_end) - max(first, gap_first))
            at = gap_end if gap_first <= at < gap_end else at
        return n_samples, at

    def _check_rows(self, logged: pa.Table, report: Report) -> None:
        for period, table in self.log.by_period(logged):
            data = self.data(period)
            sample = np.maximum(table["sample"].to_numpy(), period.numbering.first_sample)
            expected = data.table(data.rows(sample))
            report.rows += table.num_rows
            self._check_places(table, expected, report)
            self._check_segments(table, expected, report)
            self._check_tokens(table, data, expected, report)

    def _check_places(self, table: pa.Table, expected: RowTable, report: Report) -> None:
        logged = {name: table[name].to_numpy() for name in _PLACE}
        right = {name: getattr(expected.addresses, name) for name in _PLACE}
        differs = np.any([logged[name] != right[name] for name in _PLACE], axis=0)
        if differs.any():
            at = int(np.argmax(differs))
            said, told = (", ".join(f"{name} {of[name][at]}" for name in _PLACE) for of in (logged, right))
            report.add(int(differs.sum()), f"{_where(table, at)}: logged as {said}; the order gives {told}")

    def _check_segments(self, table: pa.Table, expected: RowTable, report: Report) -> None:
        logged, right = from_lists(table), expected.rows
        report.segments += logged.document.size
        differs = np.diff(logged.offsets) != np.diff(right.offsets)
        alike = np.flatnonzero(~differs)
        logged, right = logged.take(alike), right.take(alike)
        unequal = np.any([getattr(logged, name) != getattr(right, name) for name in SEGMENTS], axis=0)
        differs[alike[logged.row_of_segment[unequal]]] = True
        if differs.any():
            at = int(np.argmax(differs))
            report.add(int(differs.sum()), f"{_where(table, at)}: its segments are not those of the packing")

    def _check_tokens(self, table: pa.Table, data: TrainingData, expected: RowTable, report: Report) -> None:
        reader, logged = RowReader(data.stores, expected), table["checksum"].to_numpy()
        rows = (reader.read_unchecked(at, at + 1)[0] for at in range(logged.size))
        rebuilt = np.fromiter((row_checksum(row.tokens) for row in rows), np.uint64, logged.size)
        differs = rebuilt != logged
        if differs.any():
            at = int(np.argmax(differs))
            store, _, shard, row = (int(column[at]) for column in expected.addresses)
            report.add(
                int(differs.sum()),
                f"{_where(table, at)}: checksum {logged[at]:016x} is logged, the tokens of row {row} of "
                f"shard {shard} in {data.stores[store].store.path} have {rebuilt[at]:016x}",
            )


def _overlapping(parts: Sequence[Path]) -> Iterator[list[Path]]:
    """Parts in groups, so that no step is in two groups unless it is logged twice."""
    group: list[Path] = []
    last = -1
    for part in parts:
        if group and first_step(part) > last:
            yield group
            group = []
        group.append(part)
        last = max(last, last_step(part))
    if group:
        yield group


def _where(table: pa.Table, at: int) -> str:
    return f"step {table['step'][at]}, sample {table['sample'][at]}"
