"""Files cut into batches of whole lines, in bounded memory whatever the file holds.

Cutting is all that happens here, so that one process can feed many that parse. A Parquet file comes as
batches of rows; its rows count as lines.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

BATCH_BYTES = 1 << 20
BATCH_ROWS = 64
MAX_LINE_BYTES = 32 << 20
TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB"
_CODECS = {".gz": "gzip", ".zst": "zstd"}


class Batch(NamedTuple):
    """Whole lines of one file."""

    source: str
    """The file, as it was given."""
    first_line: int
    """Number of its first line, from 1."""
    n_lines: int
    data: bytes
    """The lines; of a Parquet file an Arrow stream of its rows."""
    rejected: list[tuple[int, str]]
    """(line, reason) of lines that are not in `data`."""
    position: int
    """Bytes of the file read so far."""
    file_hash: str | None
    """xxh3_128 of the file's bytes, with its last batch."""

    @property
    def next_line(self) -> int:
        """Where to go on after this batch."""
        return self.first_line + self.n_lines

    @property
    def is_parquet(self) -> bool:
        """Whether `data` is an Arrow stream."""
        return self.source.endswith(".parquet")


class _HashedFile(io.FileIO):
    """Hashes what is read."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.digest = xxhash.xxh3_128()

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self.digest.update(data)
        return data


def read_batches(file: Path, first_line: int = 1) -> Iterator[Batch]:
    """The batches of a file from a line on: that of a batch's `next_line` when going on, else 1.

    What cannot be read (a truncated stream, a line without end) is in `rejected`, the rest goes on. Only a
    page of a Parquet file is decompressed whole; the format allows it 2 GiB.
    """
    with _HashedFile(file) as raw:
        batches = _parquet_batches(raw, file) if file.suffix == ".parquet" else _line_batches(raw, file)
        for batch in batches:
            if batch.next_line > first_line or batch.file_hash is not None:
                yield batch


def _line_batches(raw: _HashedFile, file: Path) -> Iterator[Batch]:
    codec = _CODECS.get(file.suffix)
    stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec) if codec else raw
    line, held, too_long = 1, b"", False  # held: the beginning of a line whose end is still to come

    def batch(n_lines: int, data: bytes, reason: str | None = None, last: bool = False) -> Batch:
        rejected = [] if reason is None else [(line, reason)]
        file_hash = _finish(raw) if last else None
        return Batch(str(file), line, n_lines, data, rejected, raw.tell(), file_hash)

    while True:
        try:
            block = stream.read(BATCH_BYTES)
        except OSError as error:
            yield batch(1, b"", f"unreadable from here on: {_first_words(error)}", last=True)
            return
        if not block:
            break
        if too_long and (end := block.find(b"\n") + 1):
            yield batch(1, b"", TOO_LONG)
            line, block, too_long = line + 1, block[end:], False
        end = block.rfind(b"\n") + 1
        if end:
            data, held = held + block[:end], block[end:]
            yield batch(data.count(b"\n"), data)
            line += data.count(b"\n")
        elif not too_long:
            held += block
            too_long = len(held) > MAX_LINE_BYTES
            held = b"" if too_long else held
    yield batch(1, held, TOO_LONG if too_long else None, last=True)


def _parquet_batches(raw: _HashedFile, file: Path) -> Iterator[Batch]:
    row, size = 1, file.stat().st_size
    rejected: list[tuple[int, str]] = []
    try:
        with pq.ParquetFile(file, pre_buffer=False) as table:
            for group in range(table.num_row_groups):
                next_group = row + table.metadata.row_group(group).num_rows
                try:
                    for rows in table.iter_batches(BATCH_ROWS, row_groups=[group]):
                        for part in _small_parts(rows):
                            position = size * row // (table.metadata.num_rows + 1)
                            yield _rows_batch(file, row, part, position)
                            row += len(part)
                except (OSError, ValueError) as error:
                    rejected.append((row, f"unreadable to the end of the row group: {_first_words(error)}"))
                row = next_group
    except (OSError, ValueError) as error:
        rejected.append((row, f"unreadable from here on: {_first_words(error)}"))
    yield Batch(str(file), row, 0, b"", rejected, size, _finish(raw))


def _small_parts(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Rows in parts that are no larger than a line may be, a single row however large it is."""
    if len(rows) <= 1 or rows.nbytes <= MAX_LINE_BYTES:
        yield rows
    else:
        half = len(rows) // 2
        yield from _small_parts(rows.slice(0, half))
        yield from _small_parts(rows.slice(half))


def _rows_batch(file: Path, row: int, rows: pa.RecordBatch, position: int) -> Batch:
    if rows.nbytes > MAX_LINE_BYTES:
        return Batch(str(file), row, len(rows), b"", [(row, TOO_LONG)], position, None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return Batch(str(file), row, len(rows), sink.getvalue().to_pybytes(), [], position, None)


def _finish(raw: _HashedFile) -> str:
    while raw.read(1 << 22):
        pass
    return raw.digest.hexdigest()


def _first_words(error: Exception) -> str:
    return str(error).partition("\n")[0][:100]
