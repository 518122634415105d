"""Losses of segments in a part of a run: their distribution, by store and source over time, the extremes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.datapoints.losses import sources_of
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.segments import LoggedSegments, scan

BUCKETS = 100
"""Points in time."""
MAX_ROWS = 2_000_000
"""More rows are not read: of each bucket then its first steps."""
EXTREMES = 25
SHORTEST = 16
"""Targets of a segment that can be among the extremes: the mean of a few says little."""


class Extreme(NamedTuple):
    """A segment whose loss stands out."""

    loss: float
    step: int
    sample: int
    start: int
    length: int
    document_id: str
    store: str


@dataclass
class Losses:
    """What `read_losses` has read; losses are means over targets, in nats."""

    first: int
    last: int
    steps_read: int = 0
    """Of the steps from `first` to `last`, which the others stand for."""
    values: list[np.ndarray] = field(default_factory=list)
    """Of segments, in groups."""
    totals: dict[str, dict[str, np.ndarray]] = field(default_factory=lambda: {"store": {}, "source": {}})
    """By `store` and `source`, then by name: float64 (2, BUCKETS), losses times targets, and targets."""
    highest: list[Extreme] = field(default_factory=list)
    lowest: list[Extreme] = field(default_factory=list)

    @property
    def steps(self) -> np.ndarray:
        """The first step of each bucket, (BUCKETS,)."""
        return self.first + np.arange(BUCKETS) * (self.last + 1 - self.first) / BUCKETS

    def over_time(self, kind: str, most: int) -> dict[str, np.ndarray]:
        """The mean loss in each bucket (BUCKETS,) of the `most` stores or sources with the most targets."""
        totals = sorted(self.totals[kind].items(), key=lambda item: -item[1][1].sum())
        with np.errstate(invalid="ignore"):
            return {name: sums[0] / sums[1] for name, sums in totals[:most]}

    def all_values(self) -> np.ndarray:
        """The loss of every segment read, (n,)."""
        return np.concatenate([np.empty(0, np.float32), *self.values])


def read_losses(replay: Replay, first: int, last: int) -> Losses:
    """Read the losses that were logged in the steps from `first` to `last`; none where none were logged.

    Raises:
        InputError: the log is damaged, or a store is missing.
    """
    losses, names = Losses(first, last), names_of_stores(replay)
    for begin, end in windows(replay, first, last):
        losses.steps_read += end + 1 - begin
        for logged in scan(replay, begin, end):
            where = np.flatnonzero(np.isfinite(logged.loss))
            if where.size:
                _add(losses, logged, where, names)
    return losses


def names_of_stores(replay: Replay) -> dict[Path, str]:
    """By path the names of all stores of a run: the end of each path, as long as tells all of them apart."""
    paths = {packed.store.path for period in replay.log.periods for packed in replay.data(period).stores}
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {path: str(Path(*path.parts[-depth:])) for path in paths}


def windows(replay: Replay, first: int, last: int) -> Iterator[tuple[int, int]]:
    """The steps to read: all in one, or the first ones of each bucket."""
    last = min(last, replay.log.last_step)
    rows = max((period.global_batch_size for period in replay.log.periods), default=1)
    n_steps = last + 1 - first
    if n_steps * rows <= MAX_ROWS:
        if n_steps > 0:
            yield first, last
        return
    for bucket in range(BUCKETS):
        begin, end = (first + place * n_steps // BUCKETS for place in (bucket, bucket + 1))
        if begin < end:
            yield begin, min(end - 1, begin + max(MAX_ROWS // BUCKETS // rows, 1) - 1)


def _add(losses: Losses, logged: LoggedSegments, where: np.ndarray, store_names: dict[Path, str]) -> None:
    """Count the segments of a group at some positions."""
    loss, targets, step = logged.loss, logged.targets, logged["step"]
    losses.values.append(loss[where])
    bucket = (step - losses.first) * BUCKETS // (losses.last + 1 - losses.first)
    for number, shard, of_shard in logged.by_shard():
        of_shard = np.intersect1d(of_shard, where, assume_unique=True)
        store = logged.data.stores[number].store
        names, codes = sources_of(store, shard)
        codes = codes[logged.rows.document[of_shard]]
        of_sources = [(names[code], of_shard[codes == code]) for code in np.unique(codes).tolist()]
        groups = {"store": [(store_names[store.path], of_shard)], "source": of_sources}
        for kind, members in groups.items():
            for name, at in members:
                total = losses.totals[kind].setdefault(name, np.zeros((2, BUCKETS)))
                np.add.at(total[0], bucket[at], loss[at] * targets[at])
                np.add.at(total[1], bucket[at], targets[at])
    long_enough = where[targets[where] >= min(SHORTEST, int(targets[where].max()))]
    by_loss = long_enough[np.argsort(loss[long_enough], kind="stable")]
    lowest, highest = (_extremes(logged, at, store_names) for at in (by_loss[:EXTREMES], by_loss[-EXTREMES:]))
    losses.lowest = sorted([*losses.lowest, *lowest])[:EXTREMES]
    losses.highest = sorted([*losses.highest, *highest])[::-1][:EXTREMES]


def _extremes(logged: LoggedSegments, at: np.ndarray, store_names: dict[Path, str]) -> Iterator[Extreme]:
    for place in at.tolist():
        store = logged.data.stores[int(logged["store"][place])].store
        document, shard = logged.rows.document[place : place + 1], int(logged["shard"][place])
        [info] = store.document_info(shard, document)
        step, sample = int(logged["step"][place]), int(logged["sample"][place])
        start, length = int(logged.rows.start[place]), int(logged.rows.length[place])
        yield Extreme(
            float(logged.loss[place]), step, sample, start, length, info.id, store_names[store.path]
        )
