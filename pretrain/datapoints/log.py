"""Write the datapoint log: ranks record what they were fed, a node writes it at each checkpoint.

Steps are committed before the manifest of the checkpoint that covers them, and steps after the checkpoint
that a run resumes from are discarded. So the log has no step twice and none missing, whatever is killed and
on however many ranks the run continues.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lit_gpt.cli import InputError
from lit_gpt.rows.rows import Rows
from pretrain.data.numbering import Numbering
from pretrain.data.row_reader import RowTable, StepRows
from pretrain.datapoints import files as datapoint_files
from pretrain.datapoints.files import SCHEMA
from pretrain.datapoints.periods import DataFile, DataPeriod, Gap, read_data, write_data

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MAX_WAITING_BYTES = 1 << 30  # of a node, kept while the disk refuses them
_OR_ACCEPT = "or give --accept_log_gap to continue without"


class DatapointLog:
    """One rank's share in the log of a run.

    Until the next commit it holds about 60 bytes a row and 12 a segment.
    """

    def __init__(
        self,
        out_dir: Path,
        data: dict[str, Any],
        *,
        stage: str = "",
        numbering: Numbering,
        rank: int = 0,
        local_rank: int = 0,
        node_rank: int = 0,
        node_group: "ProcessGroup | None" = None,
    ) -> None:
        """
        Args:
            data: see `TrainingData.describe`.
            stage: the name of the run's stage.
            numbering: of the stage.
            node_group: gloo over the node's ranks, None for one.
        """
        assert numbering.first_sample == data.get("first_sample", 0)
        self._folder = Path(out_dir) / "datapoints"
        self._stage, self._numbering, self._data = stage, numbering, data
        self._rank, self._local_rank, self._node_rank = rank, local_rank, node_rank
        self._node_group = node_group
        self._steps: list[tuple[StepRows, float]] = []
        self._waiting = SCHEMA.empty_table()

    def discard_after(self, step: int, was_logged: bool = False, accept_gap: bool = False) -> None:
        """Begin, or continue, after `step`: discard later steps, and note stage and data from there on.

        For one process of the job, before any commits. The last two arguments: see `check_log`.

        Raises:
            InputError: the log up to the step is not complete, or this stage had another batch size in it;
                nothing was changed.
            OSError: it cannot be written.
        """
        periods, gaps = check_log(self._folder, step, was_logged, accept_gap)
        steps_before, size = self._numbering.steps_before, self._numbering.global_batch_size
        if periods and periods[-1].steps_before == steps_before and periods[-1].global_batch_size != size:
            raise InputError(
                f"{self._folder} was written with global_batch_size {periods[-1].global_batch_size}, not "
                f"{size}: use the same or another out_dir"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self._folder.rglob("*.tmp"):
            unfinished.unlink()
        datapoint_files.discard_after(self._folder, step)
        period = DataPeriod(self._stage, step + 1, steps_before, size, self._data)
        if not periods or replace(periods[-1], first_step=step + 1) != period:
            periods.append(period)
        write_data(self._folder, DataFile(periods, gaps))

    def record(self, rows: StepRows, seconds: float) -> None:
        """Remember what this rank was fed, and when (Unix time). Nothing is copied."""
        self._steps.append((rows, seconds))

    def take(self, step: int, skipped_steps: Collection[int] = ()) -> Callable[[], None]:
        """Hand over what was recorded since the last call.

        Args:
            step: the checkpoint's; nothing later was recorded.
            skipped_steps: those whose update was not applied.

        Returns:
            A function that writes it, for all ranks of a node at once, in any thread. It raises an OSError,
            with the path in it, if that fails; the next one then writes these steps too.
        """
        assert all(rows.step <= step for rows, _ in self._steps)
        steps, self._steps = self._steps, []
        return lambda: self._write(steps, skipped_steps)

    def commit(self, step: int, skipped_steps: Collection[int] = ()) -> None:
        """Take and write at once."""
        self.take(step, skipped_steps)()

    @property
    def too_much_waits(self) -> bool:
        """Whether more than `MAX_WAITING_BYTES` could not be written."""
        return self._waiting.nbytes > MAX_WAITING_BYTES

    def _write(self, steps: list[tuple[StepRows, float]], skipped_steps: Collection[int]) -> None:
        table = _to_table(steps, self._rank, skipped_steps)
        if self._node_group is not None:
            table = _gather(table, self._node_group)
        if self._local_rank == 0:
            self._waiting = pa.concat_tables([self._waiting, table])
        if self._waiting.num_rows > 0:
            name = datapoint_files.part_name(self._waiting["step"][0].as_py(), self._node_rank)
            datapoint_files.write_part(self._folder / name, self._waiting)
            self._waiting = SCHEMA.empty_table()


def _to_table(steps: list[tuple[StepRows, float]], rank: int, skipped_steps: Collection[int]) -> pa.Table:
    if not steps:
        return SCHEMA.empty_table()
    n_rows = [len(rows.sample) for rows, _ in steps]
    tables = list(_joined(rows for rows, _ in steps))
    columns = {
        "step": np.repeat([rows.step for rows, _ in steps], n_rows),
        "sample": np.concatenate([rows.sample for rows, _ in steps]),
        "rank": np.full(sum(n_rows), rank, np.int32),
        "time": np.repeat([round(1000 * seconds) for _, seconds in steps], n_rows),
        "applied": np.repeat([rows.step not in skipped_steps for rows, _ in steps], n_rows),
        "store": np.concatenate([table.addresses.store for table in tables]),
        "shard": np.concatenate([table.addresses.shard for table in tables]),
        "row": np.concatenate([table.addresses.row for table in tables]),
        "checksum": np.concatenate([table.checksums for table in tables]),
    }
    arrays = [pa.array(column).cast(SCHEMA.field(name).type) for name, column in columns.items()]
    arrays += datapoint_files.to_lists(Rows.concatenate([table.rows for table in tables]))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _joined(steps: Iterable[StepRows]) -> Iterator[RowTable]:
    """The rows of consecutive steps, in one table for each plan."""
    for _, group in groupby(steps, key=lambda rows: id(rows.plan)):
        of_plan = list(group)
        yield of_plan[0].plan.part(of_plan[0].first, of_plan[-1].last)


def _gather(table: pa.Table, group: "ProcessGroup") -> pa.Table:
    """All ranks' rows, by sample, on the group's first rank; elsewhere none."""
    from pretrain.checkpoint.collective import gather_bytes  # imports torch, without which logs can be read

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(table)
    parts = gather_bytes(sink.getvalue().to_pybytes(), group, to_all=False)
    tables = [pa.ipc.open_stream(part).read_all() for part in parts]
    return pa.concat_tables(tables).sort_by("sample") if tables else SCHEMA.empty_table()


# ---- is the log complete up to a checkpoint? Decided by the footers of its parts


def check_log(folder: Path, step: int, was_logged: bool, accept_gap: bool) -> DataFile:
    """What data.json must say of the steps up to `step`, after which a run continues.

    Args:
        was_logged: whether the run that saved the checkpoint wrote this log.
        accept_gap: note what is missing as a gap, and discard what cannot be read.

    Raises:
        InputError: not `accept_gap`, and data.json or rows of some steps are missing or cannot be read.
    """
    path, parts = folder / "data.json", datapoint_files.part_files(folder)
    if step == 0 or not (was_logged or parts or path.exists()):
        return DataFile([], [])
    try:
        periods, gaps = read_data(folder)
    except InputError as error:
        if not accept_gap:
            raise InputError(f"{error}, {_OR_ACCEPT} what is logged so far") from error
        for file in [*parts, *([path] if path.exists() else [])]:
            datapoint_files.discard(file)
        return DataFile([], [Gap(1, step, "log lost")])
    periods = [period for period in periods if period.first_step <= step]
    gaps = [
        Gap(gap.first_step, min(gap.last_step, step), gap.reason) for gap in gaps if gap.first_step <= step
    ]
    missing = _missing(periods, gaps, _readable(parts, accept_gap), step) if periods else []
    if missing and not was_logged and missing[-1][1] == step:
        gaps.append(Gap(*missing.pop(), "not logged"))
    if missing and not accept_gap:
        steps = ", ".join(f"{first}-{last}" for first, last in missing)
        raise InputError(
            f"{folder} has lost rows of steps {steps}: restore its parts from a copy of the run, "
            f"{_OR_ACCEPT} them"
        )
    gaps += [Gap(first, last, "log lost") for first, last in missing]
    return DataFile(periods, sorted(gaps, key=lambda gap: gap.first_step))


def _readable(parts: list[Path], accept_gap: bool) -> Iterable[tuple[int, int, int]]:
    """First step, last step and rows a step of each part, in which every step has as many: one node's."""
    for part in parts:
        try:
            first, last, rows = datapoint_files.steps_and_rows(part)
        except InputError as error:
            if not accept_gap:
                raise InputError(f"{error}, {_OR_ACCEPT} it") from error
            datapoint_files.discard(part)
        else:
            yield first, last, rows // max(last - first + 1, 1)


def _missing(
    periods: list[DataPeriod], gaps: list[Gap], parts: Iterable[tuple[int, int, int]], last_step: int
) -> list[tuple[int, int]]:
    """First and last of the steps, in no gap, that have fewer rows than their period's batch."""
    sizes = {period.first_step: period.global_batch_size for period in periods}
    in_gap = max(sizes.values(), default=0)
    change: defaultdict[int, int] = defaultdict(int)
    for first, last, rows in [*parts, *((gap.first_step, gap.last_step, in_gap) for gap in gaps)]:
        change[first] += rows
        change[last + 1] -= rows
    missing: list[tuple[int, int]] = []
    rows = size = 0
    for begin, end in pairwise(sorted({*change, *sizes, last_step + 1})):
        rows, size = rows + change[begin], sizes.get(begin, size)
        if rows < size and begin <= last_step:
            if missing and missing[-1][1] == begin - 1:
                begin = missing.pop()[0]
            missing.append((begin, end - 1))
    return missing
