"""The rows that a run validates on: a fixed, shuffled sample of the validation store."""

from collections.abc import Iterator

import numpy as np
import torch

from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.rows import RowTokens
from lit_gpt.rows.sample_order import validation_rows
from pretrain.data.batch import Batch, assemble
from pretrain.data.row_reader import RowReader, by_shard
from pretrain.data.training_data import TrainingData
from pretrain.options import DataOptions

FEW_DOCUMENTS = 100
MAX_COUNTED_ROWS = 4096  # of which documents and sources are counted: one shard's table may be open for each


class ValidationSample:
    """The same rows for every run, seed and number of ranks; all rows where `max_rows` is None or enough."""

    def __init__(self, packed: PackedStore, max_rows: int | None) -> None:
        self._packed = packed
        options = DataOptions([str(packed.store.path)], packed.block_size)
        self._data = TrainingData(options, [packed], None, shuffle=False)
        self._n_rows = int(packed.rows_per_shard.sum())
        self.complete = max_rows is None or max_rows >= self._n_rows
        # In stored order: each shard is opened once in a validation.
        self._rows = (
            np.arange(self._n_rows) if self.complete else validation_rows(self._n_rows, max_rows or 0)
        )

    def batches(
        self,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """One rank's share of the rows; all ranks get the same number of batches.

        The last ones are filled up with rows whose labels are all masked.
        """
        stride = micro_batch_size * world_size
        empty = RowTokens(np.empty(0, np.int64), np.empty(0, np.int64))
        for first in range(rank * micro_batch_size, -(-len(self._rows) // stride) * stride, stride):
            samples = self._rows[first : first + micro_batch_size]
            table = self._data.table(self._data.rows(samples))
            rows = RowReader(self._data.stores, table).read(0, len(samples))
            rows += [empty] * (micro_batch_size - len(samples))
            batch = assemble(rows, self._packed.block_size, self._data.pad_token)
            yield batch.pinned_for(device).to(device)

    def describe(self) -> list[str]:
        """Lines for the start of a run: rows, documents and sources, and a warning if they are few.

        Reads at most `MAX_COUNTED_ROWS` rows, so that a large store costs no more than a small one.
        """
        store = self._packed.store
        looked_at = self._rows[:: -(-len(self._rows) // MAX_COUNTED_ROWS)]
        n_documents, sources = 0, set[str]()
        table = self._data.table(self._data.rows(looked_at))
        shard_of_segment = table.addresses.shard[table.rows.row_of_segment]
        for _, shard, where in by_shard(np.zeros_like(shard_of_segment), shard_of_segment):
            documents = np.unique(table.rows.document[where])
            n_documents += documents.size
            sources |= store.sources_of(shard, documents)
        least = "at least " if len(looked_at) < len(self._rows) else ""
        if self.complete:
            n_documents, what = store.n_documents, "all"
        else:
            what = f"a fixed sample of {least}{n_documents:,} of"
        lines = [
            f"validation: {len(self._rows):,} of {self._n_rows:,} rows, {what} {store.n_documents:,} "
            f"documents, from {least}{len(sources):,} source(s)"
        ]
        if n_documents < FEW_DOCUMENTS:
            lines.append(
                f"warning: {n_documents:,} documents are few to validate on: val_loss may be far from the "
                "loss of the data; raise --eval_iters, or hold out more documents"
            )
        return lines
