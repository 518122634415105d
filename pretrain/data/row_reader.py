"""Rows' tokens out of memory-mapped shards, each row checked against its packing's checksum as it is read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.rows.packed_store import RowTokens, row_checksum
from pretrain.data.rows import RowTable
from pretrain.data.training_data import TrainingData

MapShard = Callable[[int, int], np.memmap]


class RowReader:
    """Reads the rows of one table; keeps the shards mapped that they lie in, and no others."""

    def __init__(self, data: TrainingData, table: RowTable, map_shard: MapShard | None = None) -> None:
        """`map_shard(store, shard)` maps a shard's tokens: in the store, or from `ShardCache.tokens`."""
        self._table = table
        self._map_shard = map_shard or (lambda store, shard: data.stores[store].store.tokens(shard))
        self._shards: dict[tuple[int, int], tuple[Path, np.ndarray]] = {}

    def read(self, first: int, last: int) -> list[RowTokens]:
        """The rows [first, last) of the table, in the stores' dtype.

        Raises:
            InputError: a row is not what was packed, with its file, shard and row.
        """
        rows = self.read_unchecked(first, last)
        for index, (row, checksum) in enumerate(
            zip(rows, self._table.checksums[first:last].tolist(), strict=True)
        ):
            if row_checksum(row.tokens) != checksum:
                raise self._damaged(first + index)
        return rows

    def read_unchecked(self, first: int, last: int) -> list[RowTokens]:
        """The same, whatever the tokens are."""
        offsets, addresses = self._table.offsets[first : last + 1].tolist(), self._table.addresses
        pieces = slice(offsets[0], offsets[-1])
        lengths = self._table.length[pieces]
        begin = self._table.token_start[pieces]
        bounds = list(zip(begin.tolist(), (begin + lengths + 1).tolist(), strict=True))
        shards = zip(addresses.store[first:last].tolist(), addresses.shard[first:last].tolist(), strict=True)
        rows = []
        for shard, start, end in zip(shards, offsets[:-1], offsets[1:], strict=True):
            of_row = slice(start - offsets[0], end - offsets[0])
            _, tokens = self._shards.get(shard) or self._map(shard)
            rows.append(RowTokens(np.concatenate([tokens[a:b] for a, b in bounds[of_row]]), lengths[of_row]))
        return rows

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
