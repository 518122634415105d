"""The files beside a shard's tokens: where each document lies, and what it is.

`NAME.idx` is the index of Megatron-LM's `IndexedDataset` (version 1). Little-endian: magic (9 bytes), version
u64, dtype code u8, number of sequences u64, number of document bounds u64, then three arrays: sequence
lengths in tokens (int32), sequence offsets in bytes (int64), document bounds (int64, n_documents + 1):
document d is the sequences bounds[d] .. bounds[d+1]-1.
`NAME.docs.parquet` has the columns id, source, source_line and n_tokens, in row groups of `ROW_GROUP`.
`NAME.ids` is n sorted xxh3_64 hashes (u64) of the ids in UTF-8, then n document numbers (u32) in that order.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

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


ROW_GROUP = 8192  # what is read to look up one document
_SCHEMA = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("source_line", pa.int64()), ("n_tokens", pa.int32())]
)


class DocumentInfo(NamedTuple):
    id: str
    source: str
    source_line: int
    n_tokens: int


class DocumentColumns(NamedTuple):
    """Documents in a row, column by column."""

    ids: Sequence[str]
    sources: Sequence[str]
    source_lines: Sequence[int] | np.ndarray
    lengths: Sequence[int] | np.ndarray
    """Tokens."""


def write_documents(base: Path, parts: Iterable[DocumentColumns]) -> None:
    """Write BASE.docs.parquet and BASE.ids.

    Args:
        parts: The documents, in groups of a multiple of `ROW_GROUP`; the last may have any number.
    """
    hashes = []
    with (
        create(Path(f"{base}.docs.parquet")) as file,
        pq.ParquetWriter(file, _SCHEMA, compression="zstd") as table,
    ):
        for part in parts:
            table.write_table(pa.table(list(part), schema=_SCHEMA), row_group_size=ROW_GROUP)
            hashes.append(np.fromiter(map(_hash, part.ids), dtype="<u8", count=len(part.ids)))
    hashes_by_document = np.concatenate(hashes)
    order = np.argsort(hashes_by_document, kind="stable")
    with create(Path(f"{base}.ids")) as file:
        file.write(hashes_by_document[order].tobytes())
        file.write(order.astype("<u4").tobytes())


def read_documents(path: Path, documents: np.ndarray) -> list[DocumentInfo]:
    """Look documents up by number, in any order; reads only the row groups that hold them."""
    wanted, where = np.unique(documents, return_inverse=True)
    found: list[DocumentInfo] = []
    with pq.ParquetFile(path) as table:
        for group in np.unique(wanted // ROW_GROUP).tolist():
            rows = wanted[wanted // ROW_GROUP == group] - group * ROW_GROUP
            columns = table.read_row_group(group).take(rows).to_pydict()
            found += map(DocumentInfo, *(columns[name] for name in DocumentInfo._fields))
    return [found[index] for index in where.tolist()]


def read_sources(path: Path) -> pa.DictionaryArray:
    """The source of every document, each name stored once."""
    column = pq.read_table(path, columns=["source"], read_dictionary=["source"])["source"]
    return column.unify_dictionaries().combine_chunks()


def find_id(path: Path, document_id: str) -> np.ndarray:
    """Numbers, ascending, of the documents whose id may be this one: those whose hash is."""
    hashes, order = _read_ids(path)
    wanted = np.uint64(_hash(document_id))
    return np.sort(order[hashes.searchsorted(wanted, "left") : hashes.searchsorted(wanted, "right")])


def find_hashes(path: Path, begin: int, end: int) -> np.ndarray:
    """Numbers, in any order, of the documents whose id has a hash in [begin, end), begin < end <= 2^64."""
    hashes, order = _read_ids(path)
    first = hashes.searchsorted(np.uint64(begin), "left")
    return order[first : hashes.searchsorted(np.uint64(end - 1), "right")]


def count_repeats(path: Path) -> int:
    """Documents of a shard whose id another one before them has."""
    hashes, _ = _read_ids(path)
    return int(np.count_nonzero(hashes[1:] == hashes[:-1]))


def _read_ids(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Sorted hashes and the documents in their order, memory-mapped."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    count = len(data) // 12
    return data[: 8 * count].view("<u8"), data[8 * count :].view("<u4")


def _hash(document_id: str) -> int:
    return xxhash.xxh3_64_intdigest(document_id.encode())
