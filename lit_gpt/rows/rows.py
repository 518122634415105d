"""Rows of segments: their arrays, the tokens they read, their checksums, and the file of one shard's rows.

A document of n tokens `t` has n-1 targets: target p has input `t[p]` and label `t[p + 1]`. A segment is
(document, start, length) in targets, and reads the `length + 1` tokens from `t[start]` on. A row is the
segments whose tokens share a sequence of `block_size` slots. In masked stores a target counts only if its
label is not masked.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from lit_gpt.hashed_files import create_hashed, hash_bytes, sync_hashed
from lit_gpt.store import masking

_ROWS_AT_ONCE = 1 << 14  # adopted shards may have any size


@dataclass(frozen=True)
class Rows:
    """Rows as flat arrays: row r has the segments `offsets[r] : offsets[r + 1]`."""

    offsets: np.ndarray
    """int64 (n_rows + 1,)."""
    document: np.ndarray
    """int32 (n_segments,), index in its shard."""
    start: np.ndarray
    """int32 (n_segments,), in targets from the document's first."""
    length: np.ndarray
    """int32 (n_segments,), in targets."""

    @property
    def n_rows(self) -> int:
        return self.offsets.size - 1

    @property
    def row_of_segment(self) -> np.ndarray:
        """int64 (n_segments,)."""
        return np.repeat(np.arange(self.n_rows), np.diff(self.offsets))

    @functools.cached_property
    def targets_per_row(self) -> np.ndarray:
        """int64 (n_rows,); a row's other slots are waste."""
        return np.diff(offsets_of(self.length)[self.offsets])

    def part(self, first: int, last: int) -> "Rows":
        """The rows [first, last), as views."""
        begin, end = self.offsets[first], self.offsets[last]
        segments = (column[begin:end] for column in (self.document, self.start, self.length))
        return Rows(self.offsets[first : last + 1] - begin, *segments)

    def take(self, rows: np.ndarray) -> "Rows":
        """The rows of these numbers, integers (k,), in this order."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        segments = ragged_ranges(self.offsets[rows], counts)
        return Rows(offsets_of(counts), self.document[segments], self.start[segments], self.length[segments])

    @classmethod
    def concatenate(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of several parts, or of none, one part after the other."""
        parts = [cls(np.zeros(1, np.int64), *(np.empty(0, np.int32) for _ in range(3))), *parts]
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        columns = ([part.document, part.start, part.length] for part in parts)
        return cls(offsets_of(counts), *map(np.concatenate, zip(*columns, strict=True)))


class RowTokens(NamedTuple):
    """One row as read: the tokens of its segments one after the other, each with its last label.

    `tokens`: (sum(lengths) + n_segments,) in the store's type. `lengths`: int32 (n_segments,) in targets.
    """

    tokens: np.ndarray
    lengths: np.ndarray


def read_rows(rows: Rows, token_start: np.ndarray, shards: Iterable[np.ndarray]) -> Iterator[RowTokens]:
    """Read rows out of their shards' tokens.

    Args:
        token_start: int64 (n_segments,), where in its shard's tokens each segment begins.
        shards: for each row the tokens of its shard, as a plain array: slicing a memmap costs several times
            more.
    """
    offsets = rows.offsets.tolist()
    bounds = list(zip(token_start.tolist(), (token_start + rows.length + 1).tolist(), strict=True))
    for tokens, (first, last) in zip(shards, itertools.pairwise(offsets), strict=False):
        read = np.concatenate([tokens[begin:end] for begin, end in bounds[first:last]])
        yield RowTokens(read, rows.length[first:last])


def row_checksum(tokens: np.ndarray) -> int:
    """xxh3_64 of a row's tokens as read, in the store's type, little-endian."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(tokens).data)


def row_checksums(rows: Rows, tokens: np.ndarray, pointers: np.ndarray) -> np.ndarray:
    """`row_checksum` of every row of a shard, uint64 (n_rows,).

    Args:
        tokens: of the shard.
        pointers: int64 (n_documents,), each document's first token.
    """
    shard = itertools.repeat(np.asarray(tokens))
    checksums = np.empty(rows.n_rows, dtype=np.uint64)
    for begin in range(0, rows.n_rows, _ROWS_AT_ONCE):
        part = rows.part(begin, min(begin + _ROWS_AT_ONCE, rows.n_rows))
        read = read_rows(part, pointers[part.document] + part.start, shard)
        checksums[begin : begin + part.n_rows] = [row_checksum(row.tokens) for row in read]
    return checksums


def counted_targets(rows: Rows, tokens: np.ndarray, pointers: np.ndarray) -> np.ndarray:
    """How many targets of each segment count, int32 (n_segments,): those whose label is not masked.

    Args:
        tokens: of the shard, raw.
        pointers: int64 (n_documents,), each document's first token.
    """
    before = np.zeros(len(tokens) + 1, np.int32)
    np.cumsum(masking.is_target(tokens), out=before[1:])
    first_label = pointers[rows.document] + rows.start + 1
    return before[first_label + rows.length] - before[first_label]


def ragged_ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The ranges [starts[i], starts[i] + counts[i]), one after another, as int64 (counts.sum(),)."""
    offsets = offsets_of(counts)
    return np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Where each of consecutive groups of these sizes (n,) begins, and the end: int64 (n + 1,)."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


# ---- the file of one shard: little-endian arrays one after the other

_LAYOUT = {"row_offsets": "<i8", "checksums": "<u8", "document": "<i4", "start": "<i4", "length": "<i4"}
_MASKED_LAYOUT = _LAYOUT | {"counted": "<i4"}


@dataclass(frozen=True)
class ShardEntry:
    """What the packing's manifest says of a shard; the names are those on disk."""

    rows: int
    pieces: int
    """Segments."""
    targets: int
    cut_documents: int
    """Documents in more than one segment."""
    bytes: int
    """Of the file, as the hash."""
    xxh3_128: str
    counted: int | None = None
    """Of a masked store: the targets that count."""


def write_shard(
    path: Path, rows: Rows, checksums: np.ndarray, counted: np.ndarray | None = None
) -> ShardEntry:
    """Write a shard's rows; they are on disk when this returns.

    Args:
        checksums: uint64 (n_rows,).
        counted: of a masked store: `counted_targets`.
    """
    arrays, layout = [rows.offsets, checksums, rows.document, rows.start, rows.length], _LAYOUT
    if counted is not None:
        arrays, layout = [*arrays, counted], _MASKED_LAYOUT
    with create_hashed(path) as file:
        for array, kind in zip(arrays, layout.values(), strict=True):
            file.write(array.astype(kind, copy=False).tobytes())
        entry = sync_hashed(file)
    return ShardEntry(
        rows=rows.n_rows,
        pieces=rows.length.size,
        targets=int(rows.length.sum(dtype=np.int64)),
        cut_documents=int(np.unique(rows.document[rows.start > 0]).size),
        **asdict(entry),
        counted=None if counted is None else int(counted.sum(dtype=np.int64)),
    )


def read_shard(path: Path, entry: ShardEntry) -> tuple[Rows, np.ndarray, np.ndarray]:
    """Map what `write_shard` wrote: rows, checksums, and how many targets of each segment count.

    Raises:
        ValueError: the file is not the one that the entry describes.
    """
    mapped = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    if hash_bytes(mapped.data) != entry.xxh3_128:
        raise ValueError(f"{path.name} is not what was written")
    counts = {"row_offsets": entry.rows + 1, "checksums": entry.rows}
    arrays, begin = [], 0
    for name, kind in (_LAYOUT if entry.counted is None else _MASKED_LAYOUT).items():
        end = begin + np.dtype(kind).itemsize * counts.get(name, entry.pieces)
        arrays.append(mapped[begin:end].view(kind))
        begin = end
    offsets, checksums, document, start, length, *counted = arrays
    return Rows(offsets, document, start, length), checksums, counted[0] if counted else length
