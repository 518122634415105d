"""Write the datapoint log: ranks record what they were fed, a node writes it at each checkpoint.

Steps are committed before the manifest of the checkpoint that covers them, and steps after the checkpoint
that a run resumes from are discarded. So the log has no step twice and none missing, whatever is killed and
on however many ranks the run continues.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lit_gpt.cli import InputError
from lit_gpt.rows.rows import Rows
from pretrain.data.numbering import Numbering
from pretrain.data.row_reader import RowTable, StepRows
from pretrain.datapoints import files as datapoint_files
from pretrain.datapoints.completeness import check_log
from pretrain.datapoints.files import SCHEMA, WITH_LOSSES
from pretrain.datapoints.periods import DataFile, DataPeriod, write_data

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

MAX_WAITING_BYTES = 1 << 30  # of a node, kept while the disk refuses them


class DatapointLog:
    """One rank's share in the log of a run.

    Until the next commit it holds about 60 bytes a row and 14 a segment.
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
        with_losses: bool = False,
    ) -> None:
        """
        Args:
            data: see `TrainingData.describe`.
            stage: the name of the run's stage.
            numbering: of the stage.
            node_group: gloo over the node's ranks, None for one.
            with_losses: log the losses of the segments, too.
        """
        assert numbering.first_sample == data.get("first_sample", 0)
        self._folder = Path(out_dir) / "datapoints"
        self._stage, self._numbering, self._data = stage, numbering, data
        self._rank, self._local_rank, self._node_rank = rank, local_rank, node_rank
        self._node_group = node_group
        self._steps: list[tuple[StepRows, float]] = []
        self._on_device: list[Tensor] = []
        self._losses: list[np.ndarray] = []
        self._schema = WITH_LOSSES if with_losses else SCHEMA
        self._waiting = self._schema.empty_table()

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

    def record(self, rows: StepRows, seconds: float, losses: "Iterable[Tensor]" = ()) -> None:
        """Remember what this rank was fed, and when (Unix time). Nothing is copied, nothing waited for.

        Args:
            losses: `segment_means` of the step's micro-batches, as they were fed.
        """
        self._steps.append((rows, seconds))
        self._on_device += losses

    def fetch_losses(self) -> None:
        """Copy the losses recorded so far off the device, which waits for it."""
        if self._on_device:
            import torch  # without which logs can be read

            self._losses.append(torch.cat(self._on_device).cpu().numpy())
            self._on_device.clear()

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
        self.fetch_losses()
        steps, self._steps = self._steps, []
        losses, self._losses = self._losses, []
        return lambda: self._write(steps, losses, skipped_steps)

    def commit(self, step: int, skipped_steps: Collection[int] = ()) -> None:
        """Take and write at once."""
        self.take(step, skipped_steps)()

    @property
    def too_much_waits(self) -> bool:
        """Whether more than `MAX_WAITING_BYTES` could not be written."""
        return self._waiting.nbytes > MAX_WAITING_BYTES

    def _write(
        self,
        steps: list[tuple[StepRows, float]],
        losses: list[np.ndarray],
        skipped_steps: Collection[int],
    ) -> None:
        table = self._to_table(steps, losses, skipped_steps)
        if self._node_group is not None:
            table = _gather(table, self._node_group)
        if self._local_rank == 0:
            self._waiting = pa.concat_tables([self._waiting, table])
        if self._waiting.num_rows > 0:
            name = datapoint_files.part_name(self._waiting["step"][0].as_py(), self._node_rank)
            datapoint_files.write_part(self._folder / name, self._waiting)
            self._waiting = self._schema.empty_table()

    def _to_table(
        self, steps: list[tuple[StepRows, float]], losses: list[np.ndarray], skipped_steps: Collection[int]
    ) -> pa.Table:
        if not steps:
            return self._schema.empty_table()
        tables = list(_joined(rows for rows, _ in steps))
        columns = _row_columns(steps, tables, self._rank, skipped_steps)
        arrays = [pa.array(column).cast(SCHEMA.field(name).type) for name, column in columns.items()]
        rows = Rows.concatenate([table.rows for table in tables])
        of_segments = None
        if self._schema == WITH_LOSSES:
            of_segments = _without_padding(np.concatenate(losses), rows, self._data["options"]["block_size"])
        arrays += datapoint_files.to_lists(rows, of_segments)
        return pa.Table.from_arrays(arrays, schema=self._schema)


def _row_columns(
    steps: list[tuple[StepRows, float]], tables: list[RowTable], rank: int, skipped_steps: Collection[int]
) -> dict[str, np.ndarray]:
    n_rows = [len(rows.sample) for rows, _ in steps]
    return {
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


def _without_padding(losses: np.ndarray, rows: Rows, block_size: int) -> np.ndarray:
    """Of the losses as fed those of the rows' segments: slots left at a row's end are fed as one more."""
    padded = (rows.targets_per_row < block_size).astype(np.int64)
    assert losses.size == rows.length.size + padded.sum()
    padded_before = np.cumsum(padded) - padded
    return losses[np.arange(rows.length.size) + padded_before[rows.row_of_segment]]


def _joined(steps: Iterable[StepRows]) -> Iterator[RowTable]:
    """The rows of consecutive steps, in one table for each plan."""
    for _, group in groupby(steps, key=lambda rows: id(rows.plan)):
        of_plan = list(group)
        yield of_plan[0].plan.part(of_plan[0].first, of_plan[-1].last)


def _gather(table: pa.Table, group: "ProcessGroup") -> pa.Table:
    """All ranks' rows, by sample, on the group's first rank; elsewhere none."""
    from pretrain.checkpoint.collective import gather_bytes  # imports torch, without which logs can be read

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    parts = gather_bytes(sink.getvalue().to_pybytes(), group, to_all=False)
    tables = [pa.ipc.open_stream(part).read_all() for part in parts]
    return pa.concat_tables(tables).sort_by("sample") if tables else table.slice(0, 0)
