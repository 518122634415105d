"""The order of training as a function: sample number <-> (store, epoch, shard, row), both ways in O(1).

It keeps no state per row, and no sample depends on the one before: a run resumes at any sample on any number
of ranks, and a row's samples follow from the row alone. docs/formats.md, Packing, has the mathematics.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.rows.feistel import derive_key, mix64, permute, unpermute
from lit_gpt.rows.mixture import Mixture

_EPOCHS_REMEMBERED = 64

# The first part of a key says what is permuted, so that no two permutations share a key; 1 is the mixture's.
_SHARDS, _ROWS, _VALIDATION = 2, 3, 4


class RowAddresses(NamedTuple):
    """The rows of samples: four integer arrays (k,). `epoch` counts passes over the row's store, from 0."""

    store: np.ndarray
    epoch: np.ndarray
    shard: np.ndarray
    row: np.ndarray


class OrderStart(NamedTuple):
    """Where a stage of a run begins in the order, so that it continues the stages before it."""

    first_sample: int
    """Samples of the stages before."""
    numbers: tuple[int, ...]
    """Of each store in the run's plan, whatever its place in this stage: the key of its permutations."""
    positions: tuple[int, ...]
    """Of each store in its own sequence, over all its epochs: how many rows of it were dealt before."""


class SampleOrder:
    """The endless sequence of rows of one or several stores.

    Each epoch of a store permutes its shards, takes them in windows of `shuffle_window` and permutes the rows
    of each window: every row comes once, and only one window's shards are read at a time. Several stores are
    mixed by weight (mixture.py), each with epochs of its own, one after the other. The sequence never ends:
    with fewer rows than a global batch, a batch has some of them more than once.

    Samples are numbered over the whole run: those of a later stage begin at its `OrderStart.first_sample`.
    """

    def __init__(
        self,
        rows_per_shard: Sequence[np.ndarray],
        weights: Sequence[float] | None,
        seed: int,
        shuffle_window: int = 8,
        shuffle: bool = True,
        names: Sequence[str] | None = None,
        start: OrderStart | None = None,
    ) -> None:
        """
        Args:
            rows_per_shard: for each store, integers (n_shards,).
            weights: each store's share of the samples, in any unit; None: its number of rows, so that all
                stores finish an epoch at about the same time.
            seed: selects the permutations.
            shuffle_window: how many shards are mixed with one another.
            shuffle: False makes every permutation the identity: shards and rows as they are stored, and in
                each block one store after the other.
            names: the stores' names in messages.
            start: of a stage that follows others; None: sample 0, every store at its position 0 and numbered
                by its place.

        Raises:
            InputError: no store, one without rows, a weight that is not positive or too small to get a sample
                in a block, a window of no shards.
        """
        self._rows_per_shard = [np.asarray(rows, dtype=np.int64) for rows in rows_per_shard]
        self._rows = np.array([rows.sum() for rows in self._rows_per_shard], dtype=np.int64)
        names = names or [f"store {number}" for number in range(self._rows.size)]
        if self._rows.size == 0:
            raise InputError("there is no token store to train on: name at least one")
        for name, rows in zip(names, self._rows.tolist(), strict=True):
            if rows == 0:
                raise InputError(f"{name} has no rows: none of its documents has two tokens; leave it out")
        if shuffle_window < 1:
            raise InputError(
                f"shuffle_window is {shuffle_window}: give the number of shards to mix, at least 1"
            )
        self._seed, self._window, self._shuffle = seed, shuffle_window, shuffle
        n_stores = self._rows.size
        self.start = start or OrderStart(0, tuple(range(n_stores)), (0,) * n_stores)
        assert len(self.start.numbers) == len(self.start.positions) == n_stores
        self._position = np.array(self.start.positions, dtype=np.int64)
        self._mixture = Mixture(weights or self._rows.tolist(), names, seed, shuffle)
        self._epoch = functools.lru_cache(maxsize=_EPOCHS_REMEMBERED)(self._make_epoch)

    def rows_per_epoch(self, store: int) -> int:
        """Number of a store's rows, and so of its samples in an epoch."""
        return int(self._rows[store])

    def locate(self, samples: np.ndarray) -> RowAddresses:
        """Samples, integers (k,) from `first_sample` on -> their rows."""
        store, position = self._mixture.locate(np.asarray(samples, dtype=np.int64) - self.start.first_sample)
        epoch, position = np.divmod(self._position[store] + position, self._rows[store])
        shard, row = np.empty_like(position), np.empty_like(position)
        for number, of_epoch, where in _by_epoch(store, epoch):
            shard[where], row[where] = self._epoch(number, of_epoch).locate(position[where])
        return RowAddresses(store, epoch, shard, row)

    def inverse(self, rows: RowAddresses) -> np.ndarray:
        """Rows -> their samples, int64 (k,): `inverse(locate(samples))` is `samples`.

        A row of an epoch that was dealt before the start, by an earlier stage, has no sample here: -1.
        """
        store, epoch, shard, row = rows
        position = np.empty_like(row)
        for number, of_epoch, where in _by_epoch(store, epoch):
            position[where] = self._epoch(number, of_epoch).inverse(shard[where], row[where])
        since_start = epoch * self._rows[store] + position - self._position[store]
        samples = self.start.first_sample + self._mixture.inverse(store, since_start)
        return np.where(since_start < 0, -1, samples)

    def positions_after(self, sample: int) -> tuple[int, ...]:
        """Each store's position in its own sequence once all samples below `sample` are dealt."""
        positions = self._position + self._mixture.positions(sample - self.start.first_sample)
        return tuple(positions.tolist())

    def shards_ahead(self, sample: int) -> list[tuple[int, int]]:
        """The (store, shard) of the windows around this sample, then of each store's next window."""
        position = self._position + self._mixture.begin_of_block(sample - self.start.first_sample)
        ahead = []
        for _ in range(2):
            for store, rows in enumerate(self._rows.tolist()):
                epoch, inside = divmod(int(position[store]), rows)
                shards, end = self._epoch(store, epoch).window(inside)
                ahead += [(store, shard) for shard in shards]
                position[store] = epoch * rows + end
        return list(dict.fromkeys(ahead))

    def _make_epoch(self, store: int, epoch: int) -> "_Epoch":
        key = (self._seed, self.start.numbers[store], epoch)
        return _Epoch(self._rows_per_shard[store], key, self._window, self._shuffle)


class _Epoch:
    """One pass over one store. A slot is a shard's place in the permuted sequence of shards."""

    def __init__(self, rows: np.ndarray, key: tuple[int, int, int], window: int, shuffle: bool) -> None:
        slots = np.arange(rows.size)
        hashes = mix64(derive_key(_SHARDS, *key) + slots.astype(np.uint64))
        self._shards = np.argsort(hashes) if shuffle else slots
        self._slot_of = np.argsort(self._shards)
        self._slot_begin = np.concatenate([[0], np.cumsum(rows[self._shards])])
        self._edges = np.append(np.arange(0, rows.size, window), rows.size)
        self._window_begin = self._slot_begin[self._edges]
        self._window_key = derive_key(_ROWS, *key, np.arange(self._edges.size - 1))
        self._shuffle = shuffle

    def locate(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the epoch -> shards, rows."""
        place = self._permute(position)
        slot = np.searchsorted(self._slot_begin, place, side="right") - 1
        return self._shards[slot], place - self._slot_begin[slot]

    def inverse(self, shard: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Shards, rows -> positions in the epoch."""
        return self._permute(self._slot_begin[self._slot_of[shard]] + row, inverse=True)

    def window(self, position: int) -> tuple[list[int], int]:
        """The shards of the window that a position is in, and the position where the next one begins."""
        window = int(np.searchsorted(self._window_begin, position, side="right")) - 1
        shards = self._shards[self._edges[window] : self._edges[window + 1]]
        return shards.tolist(), int(self._window_begin[window + 1])

    def _permute(self, place: np.ndarray, inverse: bool = False) -> np.ndarray:
        if not self._shuffle:
            return place
        window = np.searchsorted(self._window_begin, place, side="right") - 1
        begin = self._window_begin[window]
        size = self._window_begin[window + 1] - begin
        return begin + (unpermute if inverse else permute)(place - begin, size, self._window_key[window])


def validation_rows(n_rows: int, count: int) -> np.ndarray:
    """A uniform sample of `count` of a store's rows, numbered as they are stored, int64 (count,), ascending.

    It depends on the two numbers alone: every run, seed and number of ranks validates on the same rows.
    """
    return np.sort(permute(np.arange(count), n_rows, derive_key(_VALIDATION)))


def _by_epoch(store: np.ndarray, epoch: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Group by (store, epoch): each pair that occurs, with its indices."""
    order = np.lexsort((epoch, store))
    changes = (np.diff(store[order]) != 0) | (np.diff(epoch[order]) != 0)
    for where in np.split(order, np.flatnonzero(changes) + 1) if order.size else []:
        yield int(store[where[0]]), int(epoch[where[0]]), where
