"""The index of a shard in the format of Megatron-LM's `IndexedDataset` (version 1), read and written.

Bytes, all little-endian: magic (9), version u64, dtype code u8, number of sequences u64, number of document
bounds u64, then three arrays: sequence lengths in tokens (int32), sequence offsets in bytes (int64), document
bounds (int64, n_documents + 1): document d is the sequences bounds[d] .. bounds[d+1]-1.
"""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_gpt.cli import InputError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPE_OF_CODE: dict[int, np.dtype] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
_CODE_OF_DTYPE = {dtype: code for code, dtype in _DTYPE_OF_CODE.items()}


class MegatronIndex(NamedTuple):
    """Memory-mapped arrays of one index file."""

    dtype: np.dtype
    """Of the tokens in the .bin file."""
    lengths: np.ndarray
    """int32 (n_sequences,) tokens."""
    pointers: np.ndarray
    """int64 (n_sequences,) bytes from the start of the .bin file."""
    document_bounds: np.ndarray
    """int64 (n_documents + 1,) sequence numbers."""

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """Lengths int32 and starts int64, both in tokens, both (n_documents,)."""
        starts = self.pointers // self.dtype.itemsize
        if np.array_equal(self.document_bounds, np.arange(len(self.lengths) + 1)):
            return self.lengths, starts
        first, end = self.document_bounds[:-1], self.document_bounds[1:]
        before = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))
        return (before[end] - before[first]).astype(np.int32), np.append(starts, 0)[first]


def write_index(path: Path, dtype: np.dtype, lengths: np.ndarray) -> None:
    """Write the index of a shard whose documents are one sequence each and lie one after another.

    Args:
        dtype: of the tokens: uint16 or int32, little-endian.
        lengths: int32 (n_documents,) tokens.
    """
    sizes = lengths.astype(np.int64) * dtype.itemsize
    with path.open("wb") as file:
        file.write(_HEADER.pack(MAGIC, VERSION, _CODE_OF_DTYPE[dtype], len(lengths), len(lengths) + 1))
        file.write(lengths.astype("<i4").tobytes())
        file.write((np.cumsum(sizes) - sizes).astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


def read_index(path: Path) -> MegatronIndex:
    """Memory-map an index.

    Raises:
        InputError: not such an index, another version or dtype, or a size that its counts do not explain.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise InputError(f"{path} is not a Megatron-LM IndexedDataset index; give the .idx beside a .bin")
    _, version, code, n_sequences, n_bounds = _HEADER.unpack(header)
    if version != VERSION or code not in _DTYPE_OF_CODE:
        raise InputError(
            f"{path} has version {version} and dtype code {code}; version 1 with uint16 or int32 is read"
        )
    expected = _HEADER.size + 12 * n_sequences + 8 * n_bounds
    if size != expected or n_bounds < 1:
        raise InputError(
            f"{path} has {size} bytes, its header asks for {expected}: truncated or of another kind"
        )
    bounds_at = _HEADER.size + 12 * n_sequences
    data = np.memmap(path, mode="r", dtype=np.uint8)
    return MegatronIndex(
        _DTYPE_OF_CODE[code],
        data[_HEADER.size : _HEADER.size + 4 * n_sequences].view("<i4"),
        data[_HEADER.size + 4 * n_sequences : bounds_at].view("<i8"),
        data[bounds_at:].view("<i8"),
    )
