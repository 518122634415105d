"""Which rows a rank is fed, and their tokens out of memory-mapped shards."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.rows import Rows, RowTokens, ragged_ranges, read_rows, row_checksum
from lit_gpt.rows.sample_order import RowAddresses

MapShard = Callable[[int, int], np.memmap]


class RowTable(NamedTuple):
    """Rows of several shards: where they are, what their tokens must hash to, and their segments."""

    addresses: RowAddresses
    checksums: np.ndarray  # uint64 (n_rows,)
    rows: Rows

    def part(self, first: int, last: int) -> "RowTable":
        """The rows [first, last), as views."""
        addresses = RowAddresses(*(column[first:last] for column in self.addresses))
        return RowTable(addresses, self.checksums[first:last], self.rows.part(first, last))


class StepRows(NamedTuple):
    """What one rank was fed in one step; the tokens had the table's checksums, else the run has stopped."""

    step: int
    sample: np.ndarray  # int64 (n_rows,)
    plan: RowTable  # rows of this step and of its neighbours, not cut up: many steps are cheaper to join
    first: int  # of the step's rows in the plan

    @property
    def last(self) -> int:
        """The row after the step's last one in the plan."""
        return self.first + len(self.sample)

    @property
    def table(self) -> RowTable:
        """The step's own rows."""
        return self.plan.part(self.first, self.last)


class RowReader:
    """Reads the rows of one table; keeps the shards mapped that they lie in, and no others."""

    def __init__(
        self, stores: Sequence[PackedStore], table: RowTable, map_shard: MapShard | None = None
    ) -> None:
        """`map_shard(store, shard)` maps a shard's tokens: in the store, or from `ShardCache.tokens`."""
        self._table = table
        self._map_shard = map_shard or (lambda store, shard: stores[store].store.tokens(shard))
        self._shards: dict[tuple[int, int], tuple[Path, np.ndarray]] = {}
        rows = table.rows
        self._token_start = np.empty(rows.length.size, dtype=np.int64)
        for store, shard, where in by_shard(table.addresses.store, table.addresses.shard):
            begin = rows.offsets[where]
            segments = ragged_ranges(begin, rows.offsets[where + 1] - begin)
            pointers = stores[store].store.pointers(shard)
            self._token_start[segments] = pointers[rows.document[segments]] + rows.start[segments]

    def read(self, first: int, last: int) -> list[RowTokens]:
        """The rows [first, last) of the table, in the stores' dtype.

        Raises:
            InputError: a row is not what was packed, with its file, shard and row.
        """
        rows = self.read_unchecked(first, last)
        expected = self._table.checksums[first:last].tolist()
        for index, (row, checksum) in enumerate(zip(rows, expected, strict=True)):
            if row_checksum(row.tokens) != checksum:
                raise self._damaged(first + index)
        return rows

    def read_unchecked(self, first: int, last: int) -> list[RowTokens]:
        """The same, whatever the tokens are."""
        addresses, offsets = self._table.addresses, self._table.rows.offsets
        token_start = self._token_start[offsets[first] : offsets[last]]
        keys = zip(addresses.store[first:last].tolist(), addresses.shard[first:last].tolist(), strict=True)
        shards = [(self._shards.get(key) or self._map(key))[1] for key in keys]
        return list(read_rows(self._table.rows.part(first, last), token_start, shards))

    def _map(self, shard: tuple[int, int]) -> tuple[Path, np.ndarray]:
        mapped = self._map_shard(*shard)
        path = Path(str(mapped.filename))
        if path.stat().st_size < mapped.nbytes:  # reading past the end would kill the process
            raise InputError(f"{path} was cut short while it was in use: restore it and resume")
        # A plain view: slicing a memmap costs several times more.
        self._shards[shard] = (path, np.asarray(mapped))
        return self._shards[shard]

    def _damaged(self, index: int) -> InputError:
        store, _, shard, row = (int(column[index]) for column in self._table.addresses)
        return InputError(
            f"{self._shards[store, shard][0]}: row {row} of shard {shard} is not what was packed (checksum "
            "differs): the file was damaged or replaced; restore it and resume"
        )


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
