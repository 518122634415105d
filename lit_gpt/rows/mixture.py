"""Mix several stores by weight: sample number <-> (store, position in the store's own sequence).

A table of 10,000 slots, shuffled once, assigns each store slots in proportion to its weight. Each block of
10,000 samples walks it cyclically from its own offset: so each block has the exact shares, each store's
positions come in order, and both directions are a look-up.
"""

import math
from collections.abc import Sequence

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.rows.feistel import derive_key, mix64

BLOCK = 10_000
"""Samples in which each of several stores has exactly its share."""

_MIXTURE = 1  # first part of the keys, as in sample_order.py


class Mixture:
    """The shares of one or several stores, and which sample is whose."""

    def __init__(self, weights: Sequence[float], names: Sequence[str], seed: int, shuffle: bool) -> None:
        """
        Raises:
            InputError: a weight that is not positive, or too small for one slot of the table.
        """
        counts = _largest_remainder(weights, names)
        self._counts = np.array(counts if len(counts) > 1 else [1], dtype=np.int64)
        self._size = int(self._counts.sum())
        self._seed, self._shuffle = seed, shuffle
        slots = np.arange(self._size)
        if shuffle:
            slots = np.argsort(mix64(derive_key(_MIXTURE, seed) + slots.astype(np.uint64)))
        self._store = np.repeat(np.arange(self._counts.size), self._counts)[slots]
        # By store: the places of its slots, and how many of them are before each place.
        self._places = np.argsort(self._store, kind="stable")
        self._begin = np.cumsum(self._counts) - self._counts
        is_of = self._store == np.arange(self._counts.size)[:, None]
        self._before = np.cumsum(is_of, axis=1, dtype=np.int32) - is_of

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples int64 (k,) -> store and position, int64 (k,) each."""
        block, step = np.divmod(samples, self._size)
        cut = self._cut(block)
        place = (step + cut) % self._size
        store = self._store[place]
        count = self._counts[store]
        return store, block * count + (self._before[store, place] - self._before[store, cut]) % count

    def inverse(self, store: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Store and position, int64 (k,) each -> samples."""
        count = self._counts[store]
        block, number = np.divmod(position, count)
        cut = self._cut(block)
        slot = (self._before[store, cut] + number) % count
        return block * self._size + (self._places[self._begin[store] + slot] - cut) % self._size

    def begin_of_block(self, sample: int) -> np.ndarray:
        """int64 (n_stores,): each store's position where the sample's block begins."""
        return sample // self._size * self._counts

    def positions(self, sample: int) -> np.ndarray:
        """int64 (n_stores,): each store's position at this sample, that is how many before it are its own."""
        block, step = divmod(sample, self._size)
        cut = int(self._cut(np.array([block]))[0])
        rounds, place = divmod(cut + step, self._size)
        passed = rounds * self._counts + self._before[:, place] - self._before[:, cut]
        return block * self._counts + passed

    def _cut(self, block: np.ndarray) -> np.ndarray:
        if not self._shuffle:
            return np.zeros_like(block)
        return (derive_key(_MIXTURE, self._seed, block) % np.uint64(self._size)).astype(np.int64)


def _largest_remainder(weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """The number of slots of each store; of equal remainders the earlier store's is rounded up first."""
    for name, weight in zip(names, weights, strict=True):
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f"{name} has weight {weight}: give a positive number, or leave the store out")
    total = math.fsum(weights)
    quotas = [BLOCK * (weight / total) for weight in weights]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda store: counts[store] - quotas[store])
    for store in by_remainder[: BLOCK - sum(counts)]:
        counts[store] += 1
    for name, weight, count in zip(names, weights, counts, strict=True):
        if count == 0:
            raise InputError(
                f"{name} has weight {weight} of {total}, too little for one sample in a block of {BLOCK:,}: "
                "give it more, or leave it out"
            )
    return counts
