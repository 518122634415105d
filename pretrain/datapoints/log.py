"""Writing the datapoint log: ranks remember what they were fed, a node writes it at each checkpoint.

A step is committed before the manifest of the checkpoint that has seen it, and what is later than the
checkpoint a run resumes from is discarded. So the log has no step twice and none missing, whatever is
killed, and on how many ranks the run goes on.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lit_gpt.cli import InputError
from pretrain.data.rows import RowTable, StepRows
from pretrain.datapoints import files as datapoint_files
from pretrain.datapoints.files import LIST_OF_PIECES, PIECES, SCHEMA, DataFile, Segment
from pretrain.datapoints.gaps import check_log

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MAX_WAITING_BYTES = 1 << 30  # of a node, kept while the disk refuses them


class DatapointLog:
    """One rank's share in the log of a run.

    Until the next commit it holds about 60 bytes a row and 20 a piece.
    """

    def __init__(
        self,
        out_dir: Path,
        data: dict[str, Any],
        *,
        global_batch_size: int,
        rank: int = 0,
        local_rank: int = 0,
        node_rank: int = 0,
        node_group: "ProcessGroup | None" = None,
    ) -> None:
        """`data`: see `TrainingData.describe`; `node_group`: gloo over the node's ranks, None for one."""
        self._folder = Path(out_dir) / "datapoints"
        self._data = data
        self._global_batch_size = global_batch_size
        self._rank, self._local_rank, self._node_rank = rank, local_rank, node_rank
        self._node_group = node_group
        self._steps: list[tuple[StepRows, float]] = []
        self._waiting = SCHEMA.empty_table()

    def discard_after(self, step: int, was_logged: bool = False, accept_gap: bool = False) -> None:
        """Begin, or go on, after `step`: set aside what is logged later, and note the data from there on.

        For one process of the job, before any commits. The last two arguments: see `check_log`.

        Raises:
            InputError: the log up to the step is not complete, or of another batch size; nothing was changed.
            OSError: it cannot be written.
        """
        size, segments, gaps = check_log(self._folder, step, was_logged, accept_gap)
        if segments and size != self._global_batch_size:
            raise InputError(
                f"{self._folder} was written with global_batch_size {size}, not "
                f"{self._global_batch_size}: use the same or another out_dir"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self._folder.rglob("*.tmp"):
            unfinished.unlink()
        datapoint_files.discard_after(self._folder, step)
        if not segments or segments[-1].data != self._data:
            segments.append(Segment(step + 1, self._data))
        datapoint_files.write_data(self._folder, DataFile(self._global_batch_size, segments, gaps))

    def record(self, rows: StepRows, seconds: float) -> None:
        """Remember what this rank was fed, and when (Unix time). Nothing is copied."""
        self._steps.append((rows, seconds))

    def take(self, step: int, skipped_steps: Collection[int] = ()) -> Callable[[], None]:
        """Hand over what was recorded since the last time.

        Args:
            step: the checkpoint's; nothing later was recorded.
            skipped_steps: those whose update was not applied.

        Returns:
            What puts it on disk, for all ranks of a node at once, in any thread. It raises an OSError, with
            the path in it, where that fails; the next one then has these steps as well.
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
    tables = list(_whole_parts(rows for rows, _ in steps))
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
    n_pieces = np.concatenate([np.diff(table.offsets) for table in tables])
    offsets = pa.array(np.concatenate([[0], np.cumsum(n_pieces)]), pa.int32())
    for name in PIECES:
        values = pa.array(np.concatenate([getattr(table, name) for table in tables]), pa.int32())
        arrays.append(pa.ListArray.from_arrays(offsets, values, type=LIST_OF_PIECES))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _whole_parts(steps: Iterable[StepRows]) -> Iterator[RowTable]:
    """The rows of the steps, which follow one another, in as few tables as there are: cheaper to join."""
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
