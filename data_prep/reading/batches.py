"""Cut files into batches of complete lines, in bounded memory for any content.

One process cuts and feeds many that parse. A Parquet file is cut into batches of rows; a row is its line.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from lit_gpt.hashed_files import HashingReader

MAX_LINE_BYTES = 32 << 20
TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB"
UNREADABLE = "unreadable"
"""Prefix of the reason if the rest of a file, or of a row group, is lost."""
BATCH_BYTES = 1 << 20
BATCH_ROWS = 64
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_STEP = 1 << 16
_LINE_BYTES = 1000  # assumed length of a line if none was read


class Rejected(NamedTuple):
    """A line, or the rest of a file, that cannot be used."""

    line: int
    reason: str
    """The same text for all of its kind, so that they can be counted."""
    lines: int = 1
    """Number of lines lost; an estimate if the rest of a file is lost."""
    detail: str = ""
    """How much was read, and how much is missing."""


class Batch(NamedTuple):
    """Complete lines of one file."""

    source: str
    """The file, as given."""
    first_line: int
    """Number of its first line, from 1."""
    n_lines: int
    data: bytes
    """The lines, or an Arrow stream of the rows of a Parquet file."""
    rejected: list[Rejected]
    """Lines left out of `data`."""
    position: int
    """Bytes of the file read so far."""
    file_hash: str | None
    """Last batch only: xxh3_128 of the file's bytes, or "" if they cannot all be read."""

    @property
    def next_line(self) -> int:
        return self.first_line + self.n_lines

    @property
    def is_parquet(self) -> bool:
        """Whether `data` is an Arrow stream."""
        return self.source.endswith(".parquet")


def read_batches(file: Path, first_line: int = 1) -> Iterator[Batch]:
    """The batches of a file. To continue, `first_line` is the `next_line` of the last batch.

    What cannot be read (a truncated stream, a line without end) is in `rejected`; reading continues after it.
    Memory is bounded, except that a page of a Parquet file (at most 2 GiB) is decompressed at once.
    """
    with HashingReader(file) as raw:
        batches = _parquet_batches(raw, file) if file.suffix == ".parquet" else _line_batches(raw, file)
        for batch in batches:
            if batch.next_line > first_line or batch.file_hash is not None:
                yield batch


def _line_batches(raw: HashingReader, file: Path) -> Iterator[Batch]:
    codec = _CODECS.get(file.suffix)
    stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec) if codec else raw
    line, held, too_long = 1, b"", False  # held: a line whose end is still to come
    n_bytes, error = 0, None

    def batch(n_lines: int, data: bytes, rejected: Rejected | None = None, last: bool = False) -> Batch:
        file_hash = _finish(raw) if last else None
        return Batch(str(file), line, n_lines, data, [rejected] if rejected else [], raw.tell(), file_hash)

    while error is None:
        block, error = _read_block(stream)
        if error is not None and codec:
            block += _up_to_the_fault(file, codec, n_bytes + len(block))
        if not block:
            break
        n_bytes += len(block)
        if too_long and (end := block.find(b"\n") + 1):
            yield batch(1, b"", Rejected(line, TOO_LONG))
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
    if error is not None:
        yield batch(1, b"", _rest_lost(raw, file, line, n_bytes, error), last=True)
    else:
        yield batch(1, held, Rejected(line, TOO_LONG) if too_long else None, last=True)


def _read_block(stream: io.RawIOBase | pa.NativeFile) -> tuple[bytes, OSError | None]:
    """What can be read of the next BATCH_BYTES, and the error that prevents more."""
    parts: list[bytes] = []
    try:
        while sum(map(len, parts)) < BATCH_BYTES and (part := stream.read(min(_STEP, BATCH_BYTES))):
            parts.append(part)
    except OSError as error:
        return b"".join(parts), error
    return b"".join(parts), None


def _up_to_the_fault(file: Path, codec: str, n_bytes: int) -> bytes:
    """What can be read after `n_bytes`, byte by byte: a read that fails returns nothing."""
    parts: list[bytes] = []
    try:
        with pa.CompressedInputStream(pa.OSFile(str(file)), codec) as stream:
            while n_bytes:
                n_bytes -= len(stream.read(min(n_bytes, BATCH_BYTES)))
            while part := stream.read(1):
                parts.append(part)
    except OSError:
        pass
    return b"".join(parts)


def _rest_lost(raw: HashingReader, file: Path, line: int, n_bytes: int, error: OSError) -> Rejected:
    """The loss of the rest of a file from `line` on, after `n_bytes` of decompressed text."""
    size, position = file.stat().st_size, raw.tell()
    full_size = _decompressed_size(file)
    if full_size >= n_bytes > 0:
        missing = full_size - n_bytes
        said = f"{missing:,} of {full_size:,} bytes are missing"
    elif position < size:
        missing = n_bytes * (size - position) // max(position, 1) if n_bytes else size
        said = f"{size - position:,} of the file's {size:,} bytes are lost"
    else:
        missing, said = n_bytes or size, "how much is missing cannot be told, perhaps as much again"
    lines = max(1, missing * (line - 1) // n_bytes if line > 1 else missing // _LINE_BYTES)
    detail = f"{line - 1:,} lines, {n_bytes:,} bytes of text, were read before; {said}, about {lines:,} lines"
    return Rejected(line, f"{UNREADABLE} from here on: {_first_words(error)}", lines, detail)


def _decompressed_size(file: Path) -> int:
    """The size that the first frame of a .zst states, else 0."""
    if file.suffix != ".zst":
        return 0
    try:
        with file.open("rb") as stream:
            return max(0, zstandard.frame_content_size(stream.read(32)))
    except (OSError, zstandard.ZstdError):
        return 0


def _parquet_batches(raw: HashingReader, file: Path) -> Iterator[Batch]:
    row, size, n_rows = 1, file.stat().st_size, 0
    rejected: list[Rejected] = []

    def lost(what: str, n_lost: int, error: Exception) -> Rejected:
        detail = (
            f"{n_lost:,} of {n_rows:,} rows are lost" if n_rows else f"none of its {size:,} bytes was read"
        )
        return Rejected(row, f"{UNREADABLE} {what}: {_first_words(error)}", n_lost, detail)

    try:
        with pq.ParquetFile(file, pre_buffer=False) as table:
            n_rows = table.metadata.num_rows
            for group in range(table.num_row_groups):
                next_group = row + table.metadata.row_group(group).num_rows
                try:
                    for rows in table.iter_batches(BATCH_ROWS, row_groups=[group]):
                        for part in _small_parts(rows):
                            yield _rows_batch(file, row, part, size * row // (n_rows + 1))
                            row += len(part)
                except (OSError, ValueError) as error:
                    rejected.append(lost("to the end of the row group", next_group - row, error))
                row = next_group
    except (OSError, ValueError) as error:
        n_lost = n_rows + 1 - row if n_rows else max(1, size // _LINE_BYTES)
        rejected.append(lost("from here on", n_lost, error))
    yield Batch(str(file), row, 0, b"", rejected, size, _finish(raw))


def _small_parts(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Split rows into parts of at most MAX_LINE_BYTES, or single rows."""
    if len(rows) <= 1 or rows.nbytes <= MAX_LINE_BYTES:
        yield rows
    else:
        half = len(rows) // 2
        yield from _small_parts(rows.slice(0, half))
        yield from _small_parts(rows.slice(half))


def _rows_batch(file: Path, row: int, rows: pa.RecordBatch, position: int) -> Batch:
    if rows.nbytes > MAX_LINE_BYTES:
        return Batch(str(file), row, len(rows), b"", [Rejected(row, TOO_LONG)], position, None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return Batch(str(file), row, len(rows), sink.getvalue().to_pybytes(), [], position, None)


def _finish(raw: HashingReader) -> str:
    try:
        while raw.read(1 << 22):
            pass
    except OSError:
        return ""
    return raw.digest.hexdigest()


def _first_words(error: Exception) -> str:
    return str(error).partition("\n")[0][:100]
