"""The file of one shard's rows, and the checksum of a row.

Five little-endian arrays one after the other: `row_offsets` (rows + 1,), `checksums` (rows,), `document`,
`start` and `length` (pieces,). How many rows and pieces there are is in the packing's manifest.
"""

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from lit_gpt.hashed_files import create_hashed, hash_bytes, sync_hashed
from lit_gpt.rows.bin_packing import Packing

_ROWS_AT_ONCE = 1 << 14  # adopted shards may have any size
_LAYOUT = {"row_offsets": "<i8", "checksums": "<u8", "document": "<i4", "start": "<i4", "length": "<i4"}


class RowTokens(NamedTuple):
    """One row as read: the tokens of its pieces one after the other, each with the one beyond its last input.

    `tokens`: (sum(lengths) + n_pieces,) in the store's type. `lengths`: int32 (n_pieces,) in predictions.
    """

    tokens: np.ndarray
    lengths: np.ndarray


def row_checksum(tokens: np.ndarray) -> int:
    """xxh3_64 of a row's tokens as read, in the store's type, little-endian."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(tokens).data)


@dataclass(frozen=True)
class ShardEntry:
    """What the packing's manifest says of a shard."""

    rows: int
    pieces: int
    targets: int
    """Predictions."""
    cut_documents: int
    """Documents in more than one piece."""
    bytes: int
    """Of the file, as the hash."""
    xxh3_128: str


@dataclass(frozen=True)
class ShardPacking(Packing):
    """A shard's rows and for each, as uint64 (n_rows,), the checksum of its tokens when it was packed."""

    checksums: np.ndarray

    @classmethod
    def of(cls, packing: Packing, checksums: np.ndarray) -> "ShardPacking":
        """The same rows with their checksums."""
        return cls(packing.row_offsets, packing.document, packing.start, packing.length, checksums)


def row_checksums(packing: Packing, tokens: np.ndarray, pointers: np.ndarray) -> np.ndarray:
    """`row_checksum` of every row, uint64 (n_rows,).

    Args:
        tokens: of the shard.
        pointers: int64 (n_documents,), each document's first token.
    """
    tokens = np.asarray(tokens)  # to slice a memmap costs several times more
    checksums = np.empty(packing.n_rows, dtype=np.uint64)
    for begin in range(0, packing.n_rows, _ROWS_AT_ONCE):
        offsets = packing.row_offsets[begin : begin + _ROWS_AT_ONCE + 1]
        pieces = slice(offsets[0], offsets[-1])
        first = pointers[packing.document[pieces]] + packing.start[pieces]
        runs = zip(first.tolist(), (first + packing.length[pieces] + 1).tolist(), strict=True)
        checksums[begin : begin + offsets.size - 1] = [
            row_checksum(np.concatenate([tokens[a:b] for a, b in itertools.islice(runs, count)]))
            for count in np.diff(offsets).tolist()
        ]
    return checksums


def write_shard(path: Path, packing: ShardPacking) -> ShardEntry:
    """Write a shard's rows; they are on disk when this returns."""
    with create_hashed(path) as file:
        for name, kind in _LAYOUT.items():
            file.write(getattr(packing, name).astype(kind, copy=False).tobytes())
        entry = sync_hashed(file)
    return ShardEntry(
        rows=packing.n_rows,
        pieces=packing.length.size,
        targets=int(packing.length.sum(dtype=np.int64)),
        cut_documents=int(np.unique(packing.document[packing.start > 0]).size),
        **asdict(entry),
    )


def read_shard(path: Path, entry: ShardEntry) -> ShardPacking:
    """Map what `write_shard` wrote.

    Raises:
        ValueError: the file is not the one that the entry describes.
    """
    mapped = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    if hash_bytes(mapped.data) != entry.xxh3_128:
        raise ValueError(f"{path.name} is not what was written")
    counts = {"row_offsets": entry.rows + 1, "checksums": entry.rows}
    arrays, begin = {}, 0
    for name, kind in _LAYOUT.items():
        end = begin + np.dtype(kind).itemsize * counts.get(name, entry.pieces)
        arrays[name] = mapped[begin:end].view(kind)
        begin = end
    return ShardPacking(**arrays)
