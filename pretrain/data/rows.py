"""Rows with their pieces as flat arrays, many rows at a time."""

import itertools
from typing import NamedTuple

import numpy as np

from lit_gpt.rows.sample_order import RowAddresses


class RowTable(NamedTuple):
    """Rows and their pieces, flattened: row i has the pieces offsets[i] to offsets[i + 1]."""

    addresses: RowAddresses
    checksums: np.ndarray  # uint64 (n_rows,), as the packing has them
    offsets: np.ndarray  # int64 (n_rows + 1,)
    document: np.ndarray  # int32 (n_pieces,), index in its shard
    start: np.ndarray  # int32 (n_pieces,), in predictions from the document's first
    length: np.ndarray  # int32 (n_pieces,), in predictions
    token_start: np.ndarray  # int64 (n_pieces,), of the first input token, in tokens from the shard's first

    def part(self, first: int, last: int) -> "RowTable":
        """The rows [first, last), as views."""
        begin, end = self.offsets[first], self.offsets[last]
        return RowTable(
            RowAddresses(*(column[first:last] for column in self.addresses)),
            self.checksums[first:last],
            self.offsets[first : last + 1] - begin,
            *(column[begin:end] for column in self[3:]),
        )


class StepRows(NamedTuple):
    """What one rank was fed in one step: what was read has the table's checksums, else it was not fed."""

    step: int
    sample: np.ndarray  # int64 (n_rows,)
    plan: RowTable  # of this step and its neighbours; whoever goes over many steps need not cut it up
    first: int  # of the step's rows in the plan

    @property
    def last(self) -> int:
        """The row after the step's last one in the plan."""
        return self.first + len(self.sample)

    @property
    def table(self) -> RowTable:
        """The step's own rows."""
        return self.plan.part(self.first, self.last)


def ragged_ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The ranges [starts[i], starts[i] + counts[i]), one after another, as int64 (counts.sum(),)."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total)


def by_shard(store: np.ndarray, shard: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """The (store, shard) pairs that occur in two arrays (n,), each with the positions at which it does."""
    keys = (store.astype(np.int64) << 32) | shard
    by_key = np.argsort(keys, kind="stable")
    sorted_keys = keys[by_key]
    bounds = np.flatnonzero(np.diff(sorted_keys, prepend=-1, append=-1)).tolist()
    return [
        (int(sorted_keys[first]) >> 32, int(sorted_keys[first]) & 0xFFFFFFFF, by_key[first:last])
        for first, last in itertools.pairwise(bounds)
    ]
