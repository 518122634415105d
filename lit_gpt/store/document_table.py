"""The documents of a shard: a Parquet table in their order, and their hashed ids sorted for bisection.

`NAME.docs.parquet` has the columns id, source, source_line and n_tokens, in row groups of `ROW_GROUP`.
`NAME.ids` is n sorted xxh3_64 hashes (u64) of the ids in UTF-8, then n document numbers (u32) in that order.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from lit_gpt.files import create

ROW_GROUP = 8192  # what is read to look up one document
_SCHEMA = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("source_line", pa.int64()), ("n_tokens", pa.int32())]
)


class DocumentInfo(NamedTuple):
    """Where a document came from."""

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
    for part in _read_rows(path, wanted, DocumentInfo._fields):
        columns = part.to_pydict()
        found += map(DocumentInfo, *(columns[name] for name in DocumentInfo._fields))
    return [found[index] for index in where.tolist()]


def read_sources_of(path: Path, documents: np.ndarray) -> set[str]:
    """The sources of some documents; reads one column of the row groups that hold them."""
    parts = _read_rows(path, np.unique(documents), ["source"])
    return {source for part in parts for source in part["source"].unique().to_pylist()}


def _read_rows(path: Path, documents: np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Rows by number (ascending), a table for each row group that holds any of them."""
    with pq.ParquetFile(path) as table:
        for group in np.unique(documents // ROW_GROUP).tolist():
            rows = documents[documents // ROW_GROUP == group] - group * ROW_GROUP
            yield table.read_row_group(group, columns=list(columns)).take(rows)


def read_sources(path: Path) -> pa.DictionaryArray:
    """The source of every document, each name stored once."""
    column = pq.read_table(path, columns=["source"], read_dictionary=["source"])["source"]
    return column.unify_dictionaries().combine_chunks()


def find_id(path: Path, document_id: str) -> np.ndarray:
    """Numbers, ascending, of the documents whose id may be this one: those whose hash is."""
    hashes, order = _read_ids(path)
    wanted = np.uint64(_hash(document_id))
    return np.sort(order[hashes.searchsorted(wanted, "left") : hashes.searchsorted(wanted, "right")])


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
