"""The order of training as a function: sample number <-> (store, epoch, shard, row), both ways in O(1).

Nothing is stored per row and nothing depends on the sample before, so a run resumes at any sample, on any number of
ranks, and a row tells in which steps it was or will be seen. The mathematics stand in docs/formats.md, Packing.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.feistel import derive_key, permute, unpermute

MIXTURE_BLOCK = 10_000
"""In every block of so many samples each store has exactly its share."""

# The first part of a key says what is permuted, so that no two permutations share one.
_MIXTURE, _SHARDS, _ROWS = 1, 2, 3
_EPOCHS_REMEMBERED = 64


class RowAddresses(NamedTuple):
    """Where samples are: four int64 arrays of one shape (k,). `epoch` counts the passes over that store, from 0."""

    store: np.ndarray
    epoch: np.ndarray
    shard: np.ndarray
    row: np.ndarray


class SampleOrder:
    """The endless sequence of rows of one or several stores.

    Within a store every epoch permutes the shards, takes them in windows of `shuffle_window`, and permutes the rows
    of each window; so each row comes once per epoch and only a window's shards are read at a time. Several stores
    are mixed in blocks of 10,000 samples by weight. Sample numbers go on for ever: a store smaller than a batch is
    simply seen more than once in it.

    Args:
        rows_per_shard: for each store the number of rows in each shard.
        weights: for each store its share of the samples, in any unit; None means by rows, so that all stores are
            read through at the same pace.
        seed: any integer; another seed is another order.
        shuffle_window: so many shards are mixed with one another.
        shuffle: False makes every permutation the identity: stored order, and in a mixture each block store by store.
        names: how messages call the stores.

    Raises:
        InputError: a store without rows, a weight that is not positive or too small for a block, a bad window.
    """

    def __init__(
        self,
        rows_per_shard: Sequence[np.ndarray],
        weights: Sequence[float] | None,
        seed: int,
        shuffle_window: int = 8,
        shuffle: bool = True,
        names: Sequence[str] | None = None,
    ) -> None:
        self._rows_per_shard = [np.asarray(rows, dtype=np.int64) for rows in rows_per_shard]
        self._rows = [int(rows.sum()) for rows in self._rows_per_shard]
        self._seed, self._window, self._shuffle = seed, shuffle_window, shuffle
        names = names or [f"store {number}" for number in range(len(self._rows))]
        if not self._rows:
            raise InputError("there is no store to train on: name at least one in train_data_dir")
        if shuffle_window < 1:
            raise InputError(
                f"shuffle_window is {shuffle_window}: give the number of shards to mix, at least 1"
            )
        for name, rows in zip(names, self._rows, strict=True):
            if rows == 0:
                raise InputError(
                    f"{name} has no rows: it holds no document of two tokens or more, leave it out"
                )
        shares = weights if weights is not None else [float(rows) for rows in self._rows]
        counts = _block_counts(shares, names) if len(self._rows) > 1 else [1]
        self._counts = np.array(counts, dtype=np.int64)
        self._block = int(self._counts.sum())
        self._first_in_block = np.cumsum(self._counts) - self._counts
        self._epoch = functools.lru_cache(maxsize=_EPOCHS_REMEMBERED)(self._make_epoch)

    def rows_per_epoch(self, store: int) -> int:
        """How many samples one pass over the store takes."""
        return self._rows[store]

    def locate(self, samples: np.ndarray) -> RowAddresses:
        """Which rows the samples (int64 (k,), from 0) are."""
        samples = np.asarray(samples, dtype=np.int64)
        block, inside = np.divmod(samples, self._block)
        dealt = self._mix(inside, block)
        store = np.searchsorted(self._first_in_block, dealt, side="right") - 1
        position = block * self._counts[store] + dealt - self._first_in_block[store]
        epoch, position = np.divmod(position, np.array(self._rows)[store])
        shard, row = np.empty_like(samples), np.empty_like(samples)
        for number, which, chosen in _groups(store, epoch):
            shard[chosen], row[chosen] = self._epoch(number, which).locate(position[chosen])
        return RowAddresses(store, epoch, shard, row)

    def inverse(self, rows: RowAddresses) -> np.ndarray:
        """The samples, int64 (k,), that are these rows in these epochs: `inverse(locate(k)) == k`."""
        position = np.empty_like(rows.row)
        for number, which, chosen in _groups(rows.store, rows.epoch):
            position[chosen] = self._epoch(number, which).inverse(rows.shard[chosen], rows.row[chosen])
        position += rows.epoch * np.array(self._rows)[rows.store]
        block, dealt = np.divmod(position, self._counts[rows.store])
        dealt += self._first_in_block[rows.store]
        return block * self._block + self._mix(dealt, block, back=True)

    def samples_of(self, store: int, epoch: int, shard: int, row: int) -> int:
        """The one sample that is this row in this epoch of its store."""
        address = (np.array([part], dtype=np.int64) for part in (store, epoch, shard, row))
        return int(self.inverse(RowAddresses(*address))[0])

    def _mix(self, values: np.ndarray, block: np.ndarray, back: bool = False) -> np.ndarray:
        if not self._shuffle or len(self._rows) == 1:
            return values
        keys = derive_key(_MIXTURE, self._seed, block)
        return (unpermute if back else permute)(values, self._block, keys)

    def _make_epoch(self, store: int, epoch: int) -> "_Epoch":
        return _Epoch(self._rows_per_shard[store], (self._seed, store, epoch), self._window, self._shuffle)


class _Epoch:
    """One pass over one store: memory and set-up in proportion to its shards, not its rows."""

    def __init__(self, rows: np.ndarray, name: tuple[int, int, int], window: int, shuffle: bool) -> None:
        slots = np.arange(rows.size)
        self._shards = permute(slots, rows.size, derive_key(_SHARDS, *name)) if shuffle else slots
        self._slot_of = np.argsort(self._shards)
        self._slot_start = np.concatenate([[0], np.cumsum(rows[self._shards])])
        edges = np.append(np.arange(0, rows.size, window), rows.size)
        self._window_start = self._slot_start[edges]
        self._window_key = derive_key(_ROWS, *name, np.arange(edges.size - 1))
        self._shuffle = shuffle

    def locate(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position in the epoch -> shard, row."""
        place = self._permute(position)
        slot = np.searchsorted(self._slot_start, place, side="right") - 1
        return self._shards[slot], place - self._slot_start[slot]

    def inverse(self, shard: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Shard, row -> position in the epoch."""
        return self._permute(self._slot_start[self._slot_of[shard]] + row, back=True)

    def _permute(self, place: np.ndarray, back: bool = False) -> np.ndarray:
        if not self._shuffle:
            return place
        window = np.searchsorted(self._window_start, place, side="right") - 1
        start = self._window_start[window]
        size = self._window_start[window + 1] - start
        return start + (unpermute if back else permute)(place - start, size, self._window_key[window])


def _groups(store: np.ndarray, epoch: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """The distinct (store, epoch), each with a mask of where it stands."""
    groups = []
    for number in np.unique(store):
        of_store = store == number
        for which in np.unique(epoch[of_store]):
            groups.append((int(number), int(which), of_store & (epoch == which)))
    return groups


def _block_counts(weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """How many samples of a block each store has: largest remainder, ties to the earlier store."""
    for name, weight in zip(names, weights, strict=True):
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f"{name} has weight {weight}: give a positive number, or leave the store out")
    quotas = [MIXTURE_BLOCK * weight / math.fsum(weights) for weight in weights]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda store: counts[store] - quotas[store])
    for store in by_remainder[: MIXTURE_BLOCK - sum(counts)]:
        counts[store] += 1
    for name, weight, count in zip(names, weights, counts, strict=True):
        if count == 0:
            raise InputError(
                f"{name} has weight {weight}, less than one sample in a block of {MIXTURE_BLOCK:,}: "
                "give it more weight or leave it out"
            )
    return counts
