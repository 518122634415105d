"""Rows as read -> a batch: the only place that shifts labels by one against inputs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_gpt.packing import RowTokens

IGNORE_INDEX = -100


class Documents(NamedTuple):
    """Which positions of a flattened batch belong together; attention never crosses these bounds.

    `cu_seqlens`: int32 (n_documents + 1,), from 0 to B*T. `max_seqlen`: no document is longer; the block size rather
    than the longest of the batch, so that it never changes and nothing compiles again.
    """

    cu_seqlens: Tensor
    max_seqlen: int


class Batch(NamedTuple):
    """What one micro-batch feeds the model.

    `input_ids`, `labels`, `positions`: int64 (B, T). A label is the document's next token, or IGNORE_INDEX in the
    slots left over at a row's end. Positions restart at 0 in every piece.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    documents: Documents

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory, from which `to` copies without blocking."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; from pinned memory the copy does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        documents = Documents(function(self.documents.cu_seqlens), self.documents.max_seqlen)
        return Batch(function(self.input_ids), function(self.labels), function(self.positions), documents)


def assemble(rows: Sequence[RowTokens], block_size: int, filler: int) -> Batch:
    """Build a batch of shape (len(rows), block_size).

    What the pieces leave free at a row's end becomes a document of its own, of input `filler` and masked labels. A row
    without pieces is wholly masked.

    Args:
        rows: as `ShardPacking.read` gives them.
        block_size: T, in predictions.
        filler: a token id; the store's EOS.
    """
    shape = (len(rows), block_size)
    input_ids, positions = np.full(shape, filler, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORE_INDEX, np.int64)
    bounds = [0]
    for number, (tokens, lengths) in enumerate(rows):
        source, target = 0, 0
        for length in lengths.tolist():
            end = target + length
            input_ids[number, target:end] = tokens[source : source + length]
            labels[number, target:end] = tokens[source + 1 : source + length + 1]
            positions[number, target:end] = np.arange(length)
            bounds.append(number * block_size + end)
            source, target = source + length + 1, end
        if target < block_size:
            positions[number, target:] = np.arange(block_size - target)
            bounds.append((number + 1) * block_size)
    documents = Documents(torch.tensor(bounds, dtype=torch.int32), block_size)
    return Batch(*map(torch.from_numpy, (input_ids, labels, positions)), documents)
