"""Rows as read -> a batch: the only place that shifts labels by one against inputs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_gpt.model.attention import Documents
from lit_gpt.model.loss import IGNORE_INDEX
from lit_gpt.rows.rows import RowTokens
from lit_gpt.store import masking

SHORT_DOCUMENTS = 512


class Batch(NamedTuple):
    """What one micro-batch feeds the model.

    `input_ids`, `labels`, `positions`: int64 (B, T). A label is the document's next token, or IGNORE_INDEX
    where that is no target and in the slots left over at a row's end. Positions restart at 0 in each segment.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    documents: Documents

    def pinned_for(self, device: torch.device | str) -> "Batch":
        """The batch in memory from which `to` copies without blocking: page-locked if `device` is CUDA."""
        return self._map(Tensor.pin_memory) if torch.device(device).type == "cuda" else self

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; from pinned memory the copy does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        cu_seqlens, max_seqlen = self.documents
        documents = Documents(function(cu_seqlens), max_seqlen)
        return Batch(function(self.input_ids), function(self.labels), function(self.positions), documents)


def max_seqlen_bucket(longest: int, block_size: int) -> int:
    """The `max_seqlen` of a batch whose longest document has `longest` tokens: one of two values.

    Kernels launch blocks for `max_seqlen` tokens of every document: many short documents are slow under the
    row's length. Compiled blocks are specialised on the value, so it must not follow every batch.
    """
    return min(SHORT_DOCUMENTS, block_size) if longest <= SHORT_DOCUMENTS else block_size


def assemble(rows: Sequence[RowTokens], block_size: int, pad_token: int) -> Batch:
    """Build a batch of B = len(rows) rows of T = block_size slots.

    Rows of masked and of plain stores may be mixed. The slots that are left free at a row's end become a
    segment of `pad_token`s with masked labels; a row without segments is nothing else.
    """
    tokens, lengths, gaps = [], [], []
    for row in rows:
        gap = block_size - (row.tokens.size - row.lengths.size)
        gaps.append(gap)
        tokens.append(row.tokens)
        lengths.append(row.lengths)
        if gap:
            tokens.append(np.full(gap + 1, pad_token, row.tokens.dtype))
            lengths.append(np.array([gap], row.lengths.dtype))
    read, length = np.concatenate(tokens), np.concatenate(lengths)
    bounds = np.concatenate([[0], np.cumsum(length)])

    # A segment's last token is a label only. A mask drops it faster than indices would fetch the others: it
    # is an eighth of their size, and this is the loader's hottest place.
    last = bounds[1:] + np.arange(length.size)
    keep = np.ones(read.size, dtype=bool)
    keep[last] = False
    input_ids = read[keep].astype(np.int64)
    labels = np.empty_like(input_ids)
    labels[:-1] = input_ids[1:]
    labels[bounds[1:] - 1] = read[last]
    if read.dtype == masking.DTYPE and read.min() < 0:
        labels[~masking.is_target(labels)] = IGNORE_INDEX
        input_ids = masking.ids_of(input_ids)
    for number, gap in enumerate(gaps, start=1):
        labels[number * block_size - gap : number * block_size] = IGNORE_INDEX
    positions = np.arange(input_ids.size)
    positions -= np.repeat(bounds[:-1], length)

    shape = (len(rows), block_size)
    return Batch(
        torch.from_numpy(input_ids).view(shape),
        torch.from_numpy(labels).view(shape),
        torch.from_numpy(positions).view(shape),
        Documents(
            torch.from_numpy(bounds.astype(np.int32)), max_seqlen_bucket(int(length.max()), block_size)
        ),
    )
