"""The datapoint log against the data: rebuild what was fed and compare."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from lit_gpt.rows.packed_store import row_checksum
from pretrain.data.row_reader import RowReader
from pretrain.data.rows import RowTable, ragged_ranges
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.files import PIECES, RunLog, Segment, first_step, last_step, read_row_groups

MESSAGES_KEPT = 20
_PLACE = ("store", "shard", "row")


@dataclass
class Report:
    """What `Replay.verify` has seen."""

    steps: int = 0
    rows: int = 0
    pieces: int = 0
    differences: int = 0
    messages: list[str] = field(default_factory=list)
    """Of the first differences."""

    def add(self, count: int, message: str) -> None:
        """Note `count` differences, the first of which the message tells."""
        self.differences += count
        if len(self.messages) < MESSAGES_KEPT:
            self.messages.append(message)


class LoggedRows:
    """A table of the log as arrays: those of SCHEMA by name, of shape (n_rows,), pieces flattened."""

    def __init__(self, table: pa.Table) -> None:
        table = table.combine_chunks()
        self.columns: dict[str, np.ndarray] = {}
        for name in table.column_names:
            column = table[name].combine_chunks()
            self.columns[name] = (column.flatten() if name in PIECES else column).to_numpy(
                zero_copy_only=False
            )
        counts = table["document"].combine_chunks().value_lengths().to_numpy()
        self.offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


class Replay:
    """A run's log together with the data it was fed from."""

    def __init__(
        self,
        run_dir: Path | str,
        train_data_dir: Sequence[str] | None = None,
        packing_dir: str | None = None,
    ) -> None:
        """The last two say where stores and packings are now, if no longer where the run read them."""
        self.log = RunLog(run_dir)
        self._train_data_dir, self._packing_dir = train_data_dir, packing_dir
        self._opened: dict[int, TrainingData] = {}

    def data(self, segment: Segment) -> TrainingData:
        """The data of a segment.

        Raises:
            InputError: a store is missing or is not what the run read.
        """
        if segment.first_step not in self._opened:
            self._opened[segment.first_step] = TrainingData.reopen(
                segment.data, self._train_data_dir, self._packing_dir
            )
        return self._opened[segment.first_step]

    def verify(self) -> Iterator[Report]:
        """Rebuild every row by the order's function and compare with it all that is logged.

        Yields:
            The one report, after each part of the work.
        """
        report = Report()
        next_sample = (self.log.segments[0].first_step - 1) * self.log.global_batch_size
        for parts in _overlapping(self.log.parts):
            next_sample = self._check_samples(parts, next_sample, report)
            for part in parts:
                for table in read_row_groups(part):
                    self._check_rows(table, report)
                    yield report

    def _check_samples(self, parts: list[Path], next_sample: int, report: Report) -> int:
        """Each sample in its step, none twice, none missing; returns the sample after the last."""
        tables = [table for part in parts for table in read_row_groups(part, ["step", "sample"])]
        step = np.concatenate([table["step"].to_numpy() for table in tables])
        sample = np.concatenate([table["sample"].to_numpy() for table in tables])
        size = self.log.global_batch_size
        of_its_step = sample // size + 1 == step
        end = max(int(step[of_its_step].max(initial=0)) * size, next_sample)
        report.steps += self._outside_gaps(next_sample, end)[0] // size
        found, times = np.unique(sample[of_its_step], return_counts=True)
        repeated = found[(times > 1) | (found < next_sample)]
        once = found[found >= next_sample]
        bounds = np.concatenate([[next_sample - 1], once, [end]])
        holes = [(int(bounds[at]) + 1, int(bounds[at + 1])) for at in np.flatnonzero(np.diff(bounds) > 1)]
        missing = [found for found in (self._outside_gaps(*hole) for hole in holes) if found[0]]
        if not of_its_step.all():
            at = int(np.argmin(of_its_step))
            wrong = int((~of_its_step).sum())
            report.add(wrong, f"step {step[at]}: sample {sample[at]} is not one of this step's")
        if len(repeated):
            first = int(repeated[0])
            report.add(len(repeated), f"step {first // size + 1}: sample {first} is logged more than once")
        if missing:
            first = missing[0][1]
            report.add(sum(n for n, _ in missing), f"step {first // size + 1}: sample {first} is not logged")
        return end

    def _outside_gaps(self, first: int, end: int) -> tuple[int, int]:
        """How many of the samples [first, end) are in no gap of the log, and the first of them."""
        size, n_samples, at = self.log.global_batch_size, end - first, first
        for gap in self.log.gaps:
            gap_first, gap_end = (gap.first_step - 1) * size, gap.last_step * size
            n_samples -= max(0, min(end, gap_end) - max(first, gap_first))
            at = gap_end if gap_first <= at < gap_end else at
        return n_samples, at

    def _check_rows(self, table: pa.Table, report: Report) -> None:
        for segment, rows in self.log.by_segment(table):
            logged = LoggedRows(rows)
            report.rows += rows.num_rows
            report.pieces += len(logged["document"])
            data = self.data(segment)
            expected = data.table(data.rows(np.maximum(logged["sample"], 0)))
            self._check_places(logged, expected, report)
            self._check_pieces(logged, expected, report)
            self._check_tokens(logged, data, expected, report)

    def _check_places(self, logged: LoggedRows, expected: RowTable, report: Report) -> None:
        differs = np.any([logged[name] != getattr(expected.addresses, name) for name in _PLACE], axis=0)
        if differs.any():
            at = int(np.argmax(differs))
            said = ", ".join(f"{name} {logged[name][at]}" for name in _PLACE)
            right = ", ".join(f"{name} {getattr(expected.addresses, name)[at]}" for name in _PLACE)
            report.add(int(differs.sum()), f"{_where(logged, at)}: logged as {said}; the order gives {right}")

    def _check_pieces(self, logged: LoggedRows, expected: RowTable, report: Report) -> None:
        counts, right_counts = np.diff(logged.offsets), np.diff(expected.offsets)
        differs = counts != right_counts
        alike = np.flatnonzero(~differs)
        ours = ragged_ranges(logged.offsets[alike], counts[alike])
        theirs = ragged_ranges(expected.offsets[alike], counts[alike])
        unequal = np.any([logged[name][ours] != getattr(expected, name)[theirs] for name in PIECES], axis=0)
        differs[np.repeat(alike, counts[alike])[unequal]] = True
        if differs.any():
            at = int(np.argmax(differs))
            report.add(int(differs.sum()), f"{_where(logged, at)}: its pieces are not those of the packing")

    def _check_tokens(
        self, logged: LoggedRows, data: TrainingData, expected: RowTable, report: Report
    ) -> None:
        reader = RowReader(data, expected)
        n_rows = len(logged["step"])
        rebuilt = np.fromiter(
            (row_checksum(reader.read_unchecked(at, at + 1)[0].tokens) for at in range(n_rows)),
            np.uint64,
            n_rows,
        )
        differs = rebuilt != logged["checksum"]
        if differs.any():
            at = int(np.argmax(differs))
            store, _, shard, row = (int(column[at]) for column in expected.addresses)
            report.add(
                int(differs.sum()),
                f"{_where(logged, at)}: checksum {logged['checksum'][at]:016x} is logged, the tokens of row "
                f"{row} of shard {shard} in {data.stores[store].store.path} have {rebuilt[at]:016x}",
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


def _where(logged: LoggedRows, at: int) -> str:
    return f"step {logged['step'][at]}, sample {logged['sample'][at]}"
