"""Read a datapoint log segment by segment, one group of rows at a time, with what was logged of each.

    for logged in scan(Replay(run_dir), first_step, last_step):
        logged["step"], logged.rows.document, logged.loss    # arrays, an entry a segment

Memory is bounded by a group's 65,536 rows, whatever the length of the run. No store is opened until ids,
`targets` or `data` are asked for.
"""

import functools
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lit_gpt.cli import progress
from pretrain.data.row_reader import by_shard
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.files import from_lists, losses_of, read_row_groups
from pretrain.datapoints.periods import DataPeriod
from pretrain.datapoints.replay import Replay


class LoggedSegments:
    """A group of rows of the log, segment by segment, with their period and the data they were read from."""

    def __init__(self, period: DataPeriod, replay: Replay, table: pa.Table) -> None:
        self.period, self.rows = period, from_lists(table)
        self._replay, self._table, self._row = replay, table, self.rows.row_of_segment

    def __getitem__(self, name: str) -> np.ndarray:
        """A column of the log (n_segments,), for each segment what it says of its row."""
        return self._table[name].to_numpy()[self._row]

    @property
    def data(self) -> TrainingData:
        """The stores that `store` numbers.

        Raises:
            InputError: one of them is missing or is not what the run read.
        """
        return self._replay.data(self.period)

    @functools.cached_property
    def loss(self) -> np.ndarray:
        """Mean loss of each segment, fp32 (n_segments,) rounded to fp16; NaN where none was logged or none of
        its labels counted."""
        losses = losses_of(self._table)
        return np.full(self._row.size, np.nan, np.float32) if losses is None else losses.astype(np.float32)

    def by_shard(self) -> list[tuple[int, int, np.ndarray]]:
        """The (store, shard) that occur, each with the positions of its segments."""
        return by_shard(self["store"], self["shard"])

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """How many targets of each segment count, int32 (n_segments,): all in a plain store."""
        if not self.data.masked:
            return self.rows.length
        targets = self.rows.length.copy()
        for number, shard, where in self.by_shard():
            if (packed := self.data.stores[number]).store.masked:
                targets[where] = packed.loss_targets_of(shard, self.rows.document[where])
        return targets

    def ids(self) -> np.ndarray:
        """The document id of each segment, as objects."""
        ids = np.empty(self._row.size, dtype=object)
        for store, shard, where in self.by_shard():
            infos = self.data.stores[store].store.document_info(shard, self.rows.document[where])
            ids[where] = [info.id for info in infos]
        return ids


def scan(
    replay: Replay,
    first_step: int = 0,
    last_step: int = sys.maxsize,
    *,
    shards: tuple[int, int] = (0, sys.maxsize),
    bar: bool = False,
) -> Iterator[LoggedSegments]:
    """The segments fed in the steps from `first_step` to `last_step`, both included, in no promised order.

    Args:
        shards: only those with a number in this range, both included, in whatever store.
        bar: show a progress bar.

    Raises:
        InputError: a part is damaged.
    """
    parts = replay.log.parts_of(first_step, last_step)
    for part in progress(parts, description="reading the log", unit="part") if bar else parts:
        for table in read_row_groups(part, step=(first_step, last_step), shard=shards):
            for period, rows in replay.log.by_period(table):
                yield LoggedSegments(period, replay, rows)
