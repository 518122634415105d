"""Rows' tokens out of memory-mapped shards, each row checked against its packing's checksum as it is read."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.packing import RowTokens, row_checksum
from pretrain.training_data import RowTable, TrainingData

OPEN_SHARDS = 256  # each holds a file descriptor, of which a process often has only 1,024


class RowReader:
    """Reads rows of the data's stores; keeps the shards read last mapped."""

    def __init__(self, data: TrainingData, map_shard: Callable[[int, int], np.memmap] | None = None) -> None:
        """`map_shard(store, shard)` maps the shard's tokens, from a node-local copy for instance."""
        self._data = data
        self._map_shard = map_shard or (lambda store, shard: data.stores[store].store.tokens(shard))
        self._mapped: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def read(self, table: RowTable, first: int, last: int) -> list[RowTokens]:
        """The rows [first, last) of the table, in the stores' dtype.

        Raises:
            InputError: a row is not what was packed, with its store, shard and row.
        """
        rows = self.read_unchecked(table, first, last)
        for index, (row, checksum) in enumerate(zip(rows, table.checksums[first:last].tolist(), strict=True)):
            if row_checksum(row.tokens) != checksum:
                raise self._damaged(table, first + index)
        return rows

    def read_unchecked(self, table: RowTable, first: int, last: int) -> list[RowTokens]:
        """The same, whatever the tokens are."""
        bounds = table.offsets[first : last + 1].tolist()
        begin = table.token_start[bounds[0] : bounds[-1]]
        lengths = table.length[bounds[0] : bounds[-1]]
        begin, end = begin.tolist(), (begin + lengths + 1).tolist()
        stores, shards = (
            table.addresses.store[first:last].tolist(),
            table.addresses.shard[first:last].tolist(),
        )
        rows = []
        for i in range(last - first):
            tokens = self._tokens(stores[i], shards[i])
            pieces = slice(bounds[i] - bounds[0], bounds[i + 1] - bounds[0])
            read = [tokens[a:b] for a, b in zip(begin[pieces], end[pieces], strict=True)]
            rows.append(RowTokens(np.concatenate(read), lengths[pieces]))
        return rows

    def _tokens(self, store: int, shard: int) -> np.ndarray:
        key = (store, shard)
        tokens = self._mapped.get(key)
        if tokens is None:
            # A plain view: slicing a memmap costs several times more.
            tokens = self._mapped[key] = np.asarray(self._map_shard(store, shard))
            if len(self._mapped) > OPEN_SHARDS:
                self._mapped.popitem(last=False)
        return tokens

    def _damaged(self, table: RowTable, index: int) -> InputError:
        store, _, shard, row = (int(column[index]) for column in table.addresses)
        return InputError(
            f"{self._data.stores[store].store.path}: row {row} of shard {shard} is not what was "
            "packed (checksum differs): the shard was damaged or replaced; restore it and resume"
        )
