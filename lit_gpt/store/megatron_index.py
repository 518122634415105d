"""The index of a shard in the format of Megatron-LM's `IndexedDataset` (version 1), read and written.

Bytes, all little-endian: magic (9), version u64, dtype code u8, number of sequences u64, number of document
bounds u64, then three arrays: sequence lengths in tokens (int32), sequence offsets in bytes (int64), document
bounds (int64, n_documents + 1): document d is the sequences bounds[d] .. bounds[d+1]-1.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.files import create, open_regular

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPE_OF_CODE: dict[int, np.dtype] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
_CODE_OF_DTYPE = {dtype: code for code, dtype in _DTYPE_OF_CODE.items()}


class ShardIndex(NamedTuple):
    """Where the documents of a shard lie."""

    dtype: np.dtype
    """Of the tokens."""
    lengths: np.ndarray
    """int32 (n_documents,) tokens."""
    starts: np.ndarray
    """int64 (n_documents,): the first token of each document among the shard's tokens."""


def write_index(path: Path, dtype: np.dtype, lengths: np.ndarray) -> None:
    """Write the index of a shard whose documents are one sequence each and lie one after another.

    Args:
        path: the .idx file.
        dtype: of the tokens, uint16 or int32, little-endian.
        lengths: int32 (n_documents,) tokens.
    """
    sizes = lengths.astype(np.int64) * dtype.itemsize
    with create(path) as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, _CODE_OF_DTYPE[dtype], len(lengths), len(lengths) + 1))
        file.write(lengths.astype("<i4").tobytes())
        file.write((np.cumsum(sizes) - sizes).astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


def read_index(path: Path, data_bytes: int) -> ShardIndex:
    """Read an index, ours or Megatron-LM's, and check that each document is one range inside the shard.

    Args:
        path: the .idx file.
        data_bytes: size of the .bin file.

    Raises:
        InputError: the file is missing, is no such index, or points outside the data.
    """
    dtype, lengths, pointers, bounds = _read_arrays(path)
    sizes = lengths.astype(np.int64) * dtype.itemsize
    # Compared with what is left of the data: offset + size may wrap past 2^63.
    inside = np.all((sizes >= 0) & (pointers >= 0) & (pointers <= data_bytes - sizes))
    if not inside or np.any(pointers % dtype.itemsize) or data_bytes % dtype.itemsize:
        raise InputError(f"{path} points outside its data ({data_bytes} bytes): one of the two is damaged")
    starts = pointers // dtype.itemsize
    if np.array_equal(bounds, np.arange(len(lengths) + 1)):
        return ShardIndex(dtype, lengths, starts)
    # Neighbours compared, not subtracted, for the same reason; between 0 and S no bound is out of range.
    if bounds[0] != 0 or bounds[-1] != len(lengths) or np.any(bounds[1:] < bounds[:-1]):
        raise InputError(f"{path}: its document bounds do not cover its {len(lengths)} sequences in order")
    follows = np.ones(len(lengths), dtype=bool)
    follows[1:] = pointers[1:] == pointers[:-1] + sizes[:-1]
    follows[bounds[:-1][np.diff(bounds) > 0]] = True
    if not follows.all():
        raise InputError(f"{path}: the sequences of a document do not lie one after another")
    before = np.append(0, np.cumsum(lengths, dtype=np.int64))
    document_lengths = np.diff(before[bounds])
    if document_lengths.max(initial=0) > np.iinfo(np.int32).max:
        raise InputError(
            f"{path}: a document of {document_lengths.max()} tokens is longer than can be addressed"
        )
    return ShardIndex(dtype, document_lengths.astype(np.int32), np.append(starts, 0)[bounds[:-1]])


def _read_arrays(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
    try:
        with open_regular(path) as file:
            header = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); it belongs beside its .bin") from None
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise InputError(f"{path} is not an index in Megatron-LM's IndexedDataset format")
    _, version, code, n_sequences, n_bounds = _HEADER.unpack(header)
    if version != _VERSION or code not in _DTYPE_OF_CODE:
        known = "version 1 with tokens of uint16 (8) or int32 (4) is read"
        raise InputError(f"{path} has version {version} and dtype code {code}; {known}")
    sections = [(n_sequences, "<i4"), (n_sequences, "<i8"), (n_bounds, "<i8")]
    expected = _HEADER.size + sum(count * np.dtype(dtype).itemsize for count, dtype in sections)
    if size != expected or n_bounds < 1:
        hint = "it is truncated, or of a multimodal dataset"
        raise InputError(f"{path} has {size} bytes, its header speaks of {expected}: {hint}")
    data = np.memmap(path, mode="r", dtype=np.uint8)
    arrays, offset = [], _HEADER.size
    for count, dtype in sections:
        end = offset + count * np.dtype(dtype).itemsize
        arrays.append(data[offset:end].view(dtype))
        offset = end
    return _DTYPE_OF_CODE[code], arrays[0], arrays[1], arrays[2]
