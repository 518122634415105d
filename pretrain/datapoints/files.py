"""The files of a datapoint log: which rows, and which segments of documents in them, every step was fed.

    OUT/datapoints/data.json                         periods.py
    OUT/datapoints/part-00000001-node-000.parquet    rows of that step and later ones, fed to one node's ranks
    OUT/datapoints/discarded/                        rows of steps after the one a run resumed from

A file is written under another name, fsynced and renamed, so that it is complete or missing; other files are
leftovers of a kill and are not read. docs/formats.md is the specification.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lit_gpt.cli import InputError
from lit_gpt.files import rename, replacing, sync_folder, unused_path
from lit_gpt.rows.rows import Rows, offsets_of
from pretrain.datapoints.periods import DataPeriod, read_data

ROW_GROUP = 1 << 16
SEGMENTS = ("document", "start", "length")
_LIST = pa.list_(pa.field("element", pa.int32(), nullable=False))
_TYPES = {
    "step": pa.int64(),
    "sample": pa.int64(),
    "rank": pa.int32(),
    "time": pa.timestamp("ms", tz="UTC"),
    "applied": pa.bool_(),
    "store": pa.int16(),
    "shard": pa.int32(),
    "row": pa.int32(),
    "checksum": pa.uint64(),
} | dict.fromkeys(SEGMENTS, _LIST)
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _TYPES.items()])
LOSS = "loss"
WITH_LOSSES = SCHEMA.append(
    pa.field(LOSS, pa.list_(pa.field("element", pa.float16(), nullable=False)), nullable=False)
)

# Columns that grow by a constant cost nothing as deltas. Random ones cost their entropy when zstd sees the
# first byte of every value, then the second, and so on.
_ENCODINGS = (
    dict.fromkeys(("step", "sample", "rank", "time"), "DELTA_BINARY_PACKED")
    | dict.fromkeys(("store", "shard", "row", "checksum"), "BYTE_STREAM_SPLIT")
    | {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in (*SEGMENTS, LOSS)}
)


class RunLog:
    """The log of a run, for reading."""

    def __init__(self, run_dir: Path | str) -> None:
        """
        Raises:
            InputError: the run has no log, or a file of it is damaged.
        """
        self.folder = Path(run_dir) / "datapoints"
        if not (self.folder / "data.json").is_file():
            raise InputError(f"{run_dir} has no datapoints/data.json: give the out_dir of a run that logs")
        self.periods, self.gaps = read_data(self.folder)
        self.parts = part_files(self.folder)
        newest = [part for part in self.parts if first_step(part) == first_step(self.parts[-1])]
        self.last_step = max((last_step(part) for part in newest), default=0)

    def period_of(self, step: np.ndarray) -> np.ndarray:
        """The number of each step's period, integers (n,)."""
        first_steps = [period.first_step for period in self.periods]
        return np.maximum(np.searchsorted(first_steps, step, side="right") - 1, 0)

    def by_period(self, table: pa.Table) -> list[tuple[DataPeriod, pa.Table]]:
        """Split a table of the log by the period that its steps belong to."""
        which = self.period_of(table["step"].to_numpy())
        return [(self.periods[number], table.filter(which == number)) for number in np.unique(which)]

    def spans(self) -> list[tuple[DataPeriod, int]]:
        """The periods, each with its last step; of the one that has not ended a huge number."""
        ends = [following.first_step - 1 for following in self.periods[1:]] + [sys.maxsize]
        return list(zip(self.periods, ends, strict=True))

    def in_gap(self, step: int) -> bool:
        """Whether rows of a step may be missing."""
        return any(gap.first_step <= step <= gap.last_step for gap in self.gaps)

    def parts_of(self, first: int, last: int) -> list[Path]:
        """The parts that may have rows of the steps from `first` to `last`: a node's do not overlap."""
        found = []
        newest_before: dict[int, Path] = {}
        for part in self.parts:
            if first_step(part) <= first:
                newest_before[node_of(part)] = part
            elif first_step(part) <= last:
                found.append(part)
        return [*newest_before.values(), *found]

    def step_rows(self, step: int) -> pa.Table:
        """The rows of one step, by sample. Empty if the step was not logged."""
        parts = self.parts_of(step, step)
        tables = [table for part in parts for table in read_row_groups(part, step=(step, step))]
        return pa.concat_tables(tables or [SCHEMA.empty_table()]).sort_by("sample")


# ---- parts


def part_name(step: int, node: int) -> str:
    """The name of a node's part whose first step is `step`."""
    return f"part-{step:08d}-node-{node:03d}.parquet"


def part_files(folder: Path) -> list[Path]:
    """The parts, by first step and node."""
    return sorted(folder.glob("part-*-node-*.parquet"), key=lambda part: (first_step(part), part.name))


def first_step(part: Path) -> int:
    """The first step in a part, which is in its name."""
    return int(part.name.split("-")[1])


def node_of(part: Path) -> int:
    """The node that wrote a part, from its name."""
    return int(part.stem.split("-")[3])


def last_step(part: Path) -> int:
    """The last step in a part."""
    return steps_and_rows(part)[1]


def steps_and_rows(part: Path) -> tuple[int, int, int]:
    """The first and the last step in a part and how many rows it has, from name and footer.

    Raises:
        InputError: the file is damaged.
    """
    with _open(part) as file:
        column = SCHEMA.get_field_index("step")
        groups = (file.metadata.row_group(group) for group in range(file.num_row_groups))
        last = max((group.column(column).statistics.max for group in groups), default=0)
        return first_step(part), last, file.metadata.num_rows


def read_row_groups(
    part: Path, columns: Sequence[str] = tuple(WITH_LOSSES.names), **ranges: tuple[int, int]
) -> Iterator[pa.Table]:
    """A part's rows, one row group at a time; `step=(3, 7)` keeps those with 3 <= step <= 7.

    Row groups whose statistics exclude them are not read. A part without losses has no such column.

    Raises:
        InputError: the file is damaged.
    """
    with _open(part) as file:
        for group in range(file.num_row_groups):
            described = file.metadata.row_group(group)
            found = {name: described.column(SCHEMA.get_field_index(name)).statistics for name in ranges}
            if any(found[name].max < low or found[name].min > high for name, (low, high) in ranges.items()):
                continue
            table = file.read_row_group(
                group, columns=[name for name in columns if name in file.schema_arrow.names]
            )
            for name, (low, high) in ranges.items():
                if found[name].min < low or found[name].max > high:
                    column = table[name]
                    table = table.filter(pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)))
            yield table


def to_lists(rows: Rows, losses: np.ndarray | None = None) -> list[pa.Array]:
    """The columns `SEGMENTS` of rows and, where given, the segments' losses, fp16, as a part has them."""
    offsets = pa.array(rows.offsets, pa.int32())
    columns = {name: getattr(rows, name) for name in SEGMENTS}
    if losses is not None:
        columns[LOSS] = losses
    return [
        pa.ListArray.from_arrays(offsets, pa.array(column), type=WITH_LOSSES.field(name).type)
        for name, column in columns.items()
    ]


def from_lists(table: pa.Table) -> Rows:
    """The inverse of `to_lists`: the segments of a table's rows."""
    offsets = offsets_of(table["length"].combine_chunks().value_lengths().to_numpy())
    return Rows(offsets, *(_flat(table, name) for name in SEGMENTS))


def losses_of(table: pa.Table) -> np.ndarray | None:
    """The segments' losses, fp16, as `to_lists` was given them: None where they were not logged."""
    return _flat(table, LOSS) if LOSS in table.column_names else None


def _flat(table: pa.Table, name: str) -> np.ndarray:
    return table[name].combine_chunks().flatten().to_numpy()


@contextmanager
def _open(part: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(part, page_checksum_verification=True) as file:
            if file.schema_arrow not in (SCHEMA, WITH_LOSSES):
                raise InputError(f"{part} is no part of a datapoint log: its columns are others")
            yield file
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{part} is damaged ({error}): restore it from a copy of the run") from error


def write_part(path: Path, table: pa.Table) -> None:
    """Write rows of SCHEMA or WITH_LOSSES durably.

    Raises:
        OSError: with the path in it.
    """
    settings = {
        "row_group_size": ROW_GROUP,
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": False,
        "column_encoding": _ENCODINGS,
        "write_statistics": ["step", "shard"],  # by which readers skip groups
        "write_page_checksum": True,
    }
    with replacing(path) as file:
        pq.write_table(table, file, **settings)


def discard_after(folder: Path, step: int) -> None:
    """Move the rows of later steps to `discarded/`, cutting a part in two where needed.

    Killed at any moment and run again, it ends the same; no row is ever in two parts.
    """
    for part in part_files(folder):
        if first_step(part) > step:
            discard(part)
        elif last_step(part) > step:
            head = pa.concat_tables(read_row_groups(part, step=(0, step)))
            tail = pa.concat_tables(read_row_groups(part, step=(step + 1, sys.maxsize)))
            write_part(_discarded(folder, part_name(step + 1, node_of(part))), tail)
            write_part(part, head)


def discard(path: Path) -> None:
    """Move a file of the log to `discarded/`."""
    rename(path, _discarded(path.parent, path.name))
    sync_folder(path.parent)


def _discarded(folder: Path, name: str) -> Path:
    """Where to put a file: the same steps may be discarded more than once."""
    (folder / "discarded").mkdir(exist_ok=True)
    return unused_path(folder / "discarded" / name)
