"""Make the batches of every optimizer step, ahead of time in a thread.

The order is a function of the sample number, so the loader has no state but the number of samples consumed:
a step takes the next global batch of samples (numbering.py), and rank r of W the r-th of W equal slices of
it. Any rank can thus compute what all ranks are fed, without communication.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from lit_gpt.cli import InputError
from lit_gpt.rows.sample_order import RowAddresses
from pretrain.data.batch import Batch, assemble
from pretrain.data.numbering import Numbering
from pretrain.data.row_reader import RowReader, StepRows
from pretrain.data.shard_cache import ShardCache
from pretrain.data.training_data import TrainingData, compare_data
from pretrain.options import nearest_multiples

PLAN_ROWS = 4096  # rows located at a time: amortises numpy's per-call overhead


class StepBatch(NamedTuple):
    """One optimizer step's batches of one rank."""

    step: int  # counted from 1
    micro_batches: list[Batch]
    n_targets: int  # of the step, over all ranks: those that count
    n_tokens: int  # these and the masked ones
    attention_pairs: int  # of this rank: the sum of its documents' squared lengths
    rows: StepRows


class DataLoader:
    """An endless iterator over the steps from `first_step` on. It raises the errors of its thread."""

    def __init__(
        self,
        data: TrainingData,
        *,
        numbering: Numbering,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        first_step: int = 1,
        prefetch: int = 2,
    ) -> None:
        """Open the loader; a thread starts with the first `next`.

        Args:
            numbering: which samples each step takes.
            prefetch: steps made ahead by the thread; 0: no thread.

        Raises:
            InputError: the ranks cannot share the batch evenly.
        """
        size = numbering.global_batch_size
        if size % world_size != 0:
            raise InputError(
                f"global_batch_size {size} is not divisible by {world_size} processes; "
                f"the nearest that are: {nearest_multiples(size, world_size)}"
            )
        self._data = data
        self._numbering = numbering
        self._micro_batch_size = micro_batch_size
        self._rank_rows = size // world_size
        self._rank = rank
        self._device = torch.device(device)
        self._cache = _open_cache(data)
        self._steps = self._make_steps(first_step)
        self._prefetch = prefetch
        self._thread: _Prefetcher | None = None

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        if self._prefetch > 0 and self._thread is None:
            self._thread = _Prefetcher(self._steps, self._prefetch)
        batch = next(self._thread or self._steps)
        return batch._replace(micro_batches=[micro.to(self._device) for micro in batch.micro_batches])

    def close(self) -> None:
        """Stop the thread. The loader cannot be used afterwards."""
        if self._thread is not None:
            self._thread.close()
        if self._cache is not None:
            self._cache.close()

    def state_dict(self, step: int) -> dict[str, Any]:
        """State after `step` steps, as JSON: all that a loader of any world size needs to continue."""
        return {
            "samples": self._numbering.first_sample_of(step + 1),
            "global_batch_size": self._numbering.global_batch_size,
            "data": self._data.describe(),
        }

    def _make_steps(self, first_step: int) -> Iterator[StepBatch]:
        if self._device.type == "cuda" and self._device.index is not None:
            torch.cuda.set_device(self._device)  # of the prefetching thread, for the memory it pins
        n_rows = min(PLAN_ROWS, sum(int(packed.rows_per_shard.sum()) for packed in self._data.stores))
        step, n_steps = first_step, 1  # the first batch opens no more shards than it needs
        while True:
            yield from self._make_plan(step, n_steps)
            step += n_steps
            n_steps = max(1, min(2 * n_steps, n_rows // self._numbering.global_batch_size))

    def _make_plan(self, step: int, n_steps: int) -> Iterator[StepBatch]:
        """The steps [step, step + n_steps), whose rows are located together."""
        size, share = self._numbering.global_batch_size, self._rank_rows
        samples = self._numbering.first_sample_of(step) + np.arange(n_steps * size)
        everyone = self._data.rows(samples)
        targets = self._data.targets_per_row(everyone)
        tokens = self._data.tokens_per_row(everyone) if self._data.masked else targets
        n_targets, n_tokens = (of.reshape(n_steps, size).sum(axis=1).tolist() for of in (targets, tokens))
        mine = (np.arange(n_steps)[:, None] * size + self._rank * share + np.arange(share)).reshape(-1)
        samples = samples[mine]
        if self._cache is not None:
            self._cache.want(self._data.order.shards_ahead(int(samples[0])))
        table = self._data.table(RowAddresses(*(column[mine] for column in everyone)))
        reader = RowReader(self._data.stores, table, None if self._cache is None else self._cache.tokens)
        rows = table.rows
        squares = np.concatenate([[0], np.cumsum(rows.length.astype(np.int64) ** 2)])[rows.offsets]
        for i in range(n_steps):
            first, last = i * share, (i + 1) * share
            yield StepBatch(
                step=step + i,
                micro_batches=[
                    self._make_batch(reader, start, min(start + self._micro_batch_size, last))
                    for start in range(first, last, self._micro_batch_size)
                ],
                n_targets=n_targets[i],
                n_tokens=n_tokens[i],
                attention_pairs=int(squares[last] - squares[first]),
                rows=StepRows(step + i, samples[first:last], table, first),
            )

    def _make_batch(self, reader: RowReader, first: int, last: int) -> Batch:
        batch = assemble(reader.read(first, last), self._data.options.block_size, self._data.pad_token)
        return batch.pinned_for(self._device)


class _Prefetcher:
    """Runs an iterator in a thread, a few items ahead."""

    def __init__(self, items: Iterator[StepBatch], ahead: int) -> None:
        self._items = items
        self._queue: queue.Queue[StepBatch | BaseException] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dataloader", daemon=True)
        self._thread.start()

    def __next__(self) -> StepBatch:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # raise it again on the next call
            raise item
        return item

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as error:  # the consumer raises it
            self._put(error)

    def _put(self, item: StepBatch | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _open_cache(data: TrainingData) -> ShardCache | None:
    if data.options.cache_dir is None:
        return None
    stores = [packed.store for packed in data.stores]
    return ShardCache(data.options.cache_dir, int(1e9 * data.options.cache_gb), stores)


def check_resumable(state: dict[str, Any], data: TrainingData, allow_changed_data: bool = False) -> None:
    """Refuse to resume from `DataLoader.state_dict` with other data, unless that is allowed.

    Raises:
        InputError: naming everything that changed.
    """
    changes = compare_data(state["data"], data.describe())
    if changes and not allow_changed_data:
        raise InputError(
            f"the data is not what the checkpoint was trained on: {'; '.join(changes)}; "
            "restore it, or give --allow_changed_data to continue with the new data"
        )
