"""What a run validates on: a fixed, shuffled sample of the rows of each named store."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lit_gpt.errors import InputError
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.rows import RowTokens
from lit_gpt.rows.sample_order import validation_rows
from lit_gpt.store.manifest import ChatFormat
from lit_gpt.store.token_bytes import TokenBytes, count_token_bytes
from lit_gpt.store.token_store import TokenStore
from pretrain import parallel
from pretrain.data.batch import Batch, assemble
from pretrain.data.row_reader import RowReader, by_shard
from pretrain.data.training_data import TrainingData
from pretrain.options import DataOptions, TrainOptions

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
        """One rank's share of the rows, in memory from which they go to `device` without waiting.

        All ranks get the same number of batches. The last ones are filled up with rows whose labels are all
        masked.
        """
        stride = micro_batch_size * world_size
        empty = RowTokens(np.empty(0, np.int32), np.empty(0, np.int32))  # holds any pad token
        for first in range(rank * micro_batch_size, -(-len(self._rows) // stride) * stride, stride):
            samples = self._rows[first : first + micro_batch_size]
            table = self._data.table(self._data.rows(samples))
            rows = RowReader(self._data.stores, table).read(0, len(samples))
            rows += [empty] * (micro_batch_size - len(samples))
            yield assemble(rows, self._packed.block_size, self._data.pad_token).pinned_for(device)

    def describe(self, name: str) -> list[str]:
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
            f"{name}: {len(self._rows):,} of {self._n_rows:,} rows, {what} {store.n_documents:,} "
            f"documents, from {least}{len(sources):,} source(s)"
        ]
        if store.masked:
            share = store.n_targets / store.n_tokens
            lines.append(f"{name}: masked, {share:.1%} of the store's tokens are targets")
        if n_documents < FEW_DOCUMENTS:
            lines.append(
                f"warning: {name}: {n_documents:,} documents are few to validate on: the loss may be far "
                "from that of the data; raise --eval_iters, or hold out more documents"
            )
        return lines


class ValidationResult(NamedTuple):
    """What was measured on a store: sums over its targets; `n_bytes` is None where bytes are not known."""

    store: str
    loss_sum: float
    targets: int
    n_bytes: int | None

    @property
    def loss(self) -> float:
        """Mean over targets, in nats; nan where all are masked."""
        return self.loss_sum / self.targets if self.targets else math.nan

    @property
    def bits_per_byte(self) -> float | None:
        """Of the text that the targets stand for."""
        return self.loss_sum / (math.log(2) * self.n_bytes) if self.n_bytes else None


class Validation:
    """The stores of a run by name. Measuring is collective and gives the same for any number of ranks."""

    def __init__(
        self,
        stores: Mapping[str, PackedStore],
        options: TrainOptions,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        sampled_by: TrainOptions | None = None,
    ) -> None:
        """`sampled_by`: options that decide how many rows are read, where they are not `options`."""
        sampled_by = sampled_by or options
        max_rows = sampled_by.eval_iters * sampled_by.micro_batch_size or None
        self._samples = {name: ValidationSample(packed, max_rows) for name, packed in stores.items()}
        self._share = (options.micro_batch_size, rank, world_size, device)
        self._bytes: TokenBytes | None = None
        try:
            self._bytes = count_token_bytes(next(iter(stores.values())).store.path / "tokenizer")
            self._about_bytes = self._bytes.notes
        except ValueError as error:
            self._about_bytes = [f"not computed: {error}"]

    def describe(self) -> list[str]:
        """Lines for the start of a run: about each store, and what bits per byte do not see."""
        alone = len(self._samples) == 1
        lines = []
        for name, sample in self._samples.items():
            lines += sample.describe("validation" if alone else f"validation on {name}")
        return lines + [f"bits per byte: {'; '.join(self._about_bytes)}"] * bool(self._about_bytes)

    def measure(
        self, model: nn.Module, should_stop: Callable[[], bool] = lambda: False
    ) -> list[ValidationResult] | None:
        """Evaluate the model on every store, in the order given.

        Args:
            model: In evaluation mode; of a batch's four parts it gives the sum of the losses.
            should_stop: Asked after each batch; the same on all ranks.

        Returns:
            None if it was stopped.
        """
        device = self._share[-1]
        losses = torch.zeros(len(self._samples), dtype=torch.float64, device=device)
        counts = torch.zeros(len(self._samples), 2, dtype=torch.float64)
        for number, sample in enumerate(self._samples.values()):
            for batch in sample.batches(*self._share):
                labels = batch.labels.numpy()
                n_bytes = self._bytes.of_labels(batch.input_ids.numpy(), labels) if self._bytes else 0
                counts[number] += torch.tensor([np.count_nonzero(labels >= 0), n_bytes])
                on_device = batch.to(device)
                losses[number] += model(
                    on_device.input_ids, on_device.positions, on_device.documents, on_device.labels
                ).double()
                if should_stop():
                    return None
        sums = parallel.all_reduce_sum(torch.cat([losses[:, None], counts.to(device)], dim=1)).tolist()
        return [
            ValidationResult(name, loss, int(targets), int(n_bytes) if self._bytes else None)
            for name, (loss, targets, n_bytes) in zip(self._samples, sums, strict=True)
        ]


def mean_loss(results: Sequence[ValidationResult]) -> float:
    """Mean over the targets of all stores."""
    loss_sum, targets = (sum(getattr(n, name) for n in results) for name in ("loss_sum", "targets"))
    return ValidationResult("", loss_sum, targets, None).loss


def template_warnings(chat: ChatFormat | None, stores: Iterable[TokenStore]) -> list[str]:
    """A line for each validation store whose conversations have another template than the training's."""
    return [
        f"warning: --val_data_dir {store.path}: its chat template is not that of the training data, and "
        "its loss measures that too; tokenize both with the same --template"
        for store in stores
        if chat and store.manifest.chat and store.manifest.chat != chat
    ]


def named_stores(val_data_dir: Sequence[str]) -> dict[str, Path]:
    """Folders by name from `NAME=DIR` or `DIR`, which has the folder's name.

    Raises:
        InputError: a name that cannot be used, or that two stores have; a share or a weight.
    """
    stores: dict[str, Path] = {}
    for entry in val_data_dir:
        name, equals, folder = entry.partition("=")
        if not equals or Path(entry).is_dir():
            name, folder = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(os.path.abspath(entry)).name), entry
        elif not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise InputError(f"--val_data_dir {entry}: {name!r} is no name; use letters, digits, . _ and -")
        for sign in "@:":
            whole = folder.rpartition(sign)[0]
            if whole and Path(whole).is_dir() and not Path(folder).is_dir():
                raise InputError(
                    f"--val_data_dir {entry}: shares and weights belong to --train_data_dir; give {whole} "
                    "alone, and hold documents out when you tokenize (--val_output, --val_fraction)"
                )
        if name in stores:
            raise InputError(
                f"--val_data_dir: {stores[name]} and {folder} are both named {name}; write NAME=DIR"
            )
        stores[name] = Path(folder)
    return stores
