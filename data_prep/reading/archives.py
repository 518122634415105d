"""Cut WARC files into records. After damage, reading continues with the next record that can be read.

fastwarc parses; this module finds out what it could not parse: damaged and cut records, and garbage between
records. In a .gz, reading can only continue if each record is a member of its own, as the standard advises.
"""

import base64
import hashlib
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from data_prep.reading.batches import MAX_LINE_BYTES, UNREADABLE, Rejected

_GZIP = b"\x1f\x8b\x08"
_BLANK_LINES = (b"\r\n\r\n", b"\n\n")
_HEADER_LINE = re.compile(rb"(?:\A|\n)WARC/1\.\d\r\n")
_STEP = 1 << 20
_MAX_HEADER_BYTES = 1 << 16
_RECORD_BYTES = 20_000  # assumed length of a record if none was read
_CUT = "the file ends within a record"
_NO_LENGTH = "a record without a length"  # as of one that is cut in its header
_JOINED = "a record that runs into the next one"
_TWO_HEADERS = "a header with parts of two"


class Record(NamedTuple):
    """One record of a WARC."""

    number: int
    """From 1; lost ones are not counted."""
    headers: Mapping[str, str]
    """By names in lower case."""
    content: bytes | None
    """None if it is longer than MAX_LINE_BYTES."""


class _Place(NamedTuple):
    start: int
    length: int
    """Of the content."""


def read_archive(file: Path) -> Iterator[Record | Rejected]:
    """The records of a file, in order, and what is lost before, between and after them.

    Memory is bounded: longer contents than MAX_LINE_BYTES are read past.
    """
    compressed, size = file.suffix == ".gz", file.stat().st_size
    number, lost_from, why = 0, None, ""
    start: int | None = 0
    with file.open("rb", buffering=0) as stream:
        while start is not None:
            held: tuple[_Place, Record] | None = None  # until it is known to be whole
            error = None
            try:
                for place, headers, content in _records(stream, start, compressed):
                    if lost_from is not None and lost_from < place.start:  # else only zeros are between
                        yield _lost(number, lost_from, place.start, why)
                    lost_from = None
                    if held is not None:
                        yield held[1]
                    number += 1
                    held = place, Record(number, headers, content)
            except OSError as failure:
                error = failure
            end, is_whole = (start, False) if held is None else _end(stream, held[0], compressed)
            if held is not None and is_whole:
                yield held[1]
            elif held is not None:
                number -= 1
            if error is None and is_whole and end >= size:
                return
            if lost_from is None:
                lost_from, why = end, _CUT if error is None else str(error).partition("\n")[0][:100]
            start = _next_start(stream, end if is_whole else end + 1, compressed)
        assert lost_from is not None
        yield _rest_lost(number, lost_from, size, why)


def _records(
    stream: io.FileIO, start: int, compressed: bool
) -> Iterator[tuple[_Place, dict[str, str], bytes | None]]:
    """Place, headers and content of the records from a byte on.

    Raises:
        OSError: what comes next is no whole record.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType  # only archives need it

    stream.seek(start)
    for record in ArchiveIterator(
        stream,
        record_types=WarcRecordType.any_type,
        parse_http=False,
        max_header_len=_MAX_HEADER_BYTES,
    ):
        headers = {name.lower(): value for name, value in record.headers.items()}
        length, content = headers.get("content-length", ""), None
        if not (length.isascii() and length.isdigit()):
            raise OSError(_NO_LENGTH)
        if _is_of_two(record.headers.items()):
            raise OSError(_TWO_HEADERS)
        if int(length) > MAX_LINE_BYTES:
            n_read = record.reader.consume()
        else:
            content = record.reader.read()
            n_read = len(content)
        if n_read < int(length):
            raise OSError(_CUT)
        if content is not None and not compressed and _is_joined(headers, content):
            raise OSError(_JOINED)
        yield _Place(record.stream_pos, int(length)), headers, content


def _is_of_two(headers: Iterable[tuple[str, str]]) -> bool:
    """Bytes from one header to a later one are missing, or zeros as of a lost block."""
    headers = list(headers)
    ids = [name for name, _ in headers if name.lower() == "warc-record-id"]
    return len(ids) > 1 or any("\0" in name + value for name, value in headers)


def _is_joined(headers: Mapping[str, str], content: bytes) -> bool:
    """Bytes are missing, so that the length takes in the next record; not if that is what was crawled."""
    if not _HEADER_LINE.search(content):
        return False
    digest = "sha1:" + base64.b32encode(hashlib.sha1(content).digest()).decode()
    return headers.get("warc-block-digest") != digest


def _end(stream: io.FileIO, place: _Place, compressed: bool) -> tuple[int, bool]:
    """Where a record ends, with the blank lines or zeros after it, and True; its start and False if it is
    damaged or cut."""
    stream.seek(place.start)
    if compressed:
        return _end_of_member(stream, place.start)
    head = stream.read(_MAX_HEADER_BYTES)
    heads = [found + len(mark) for mark in _BLANK_LINES if (found := head.find(mark)) >= 0]
    end = place.start + min(heads, default=0) + place.length
    stream.seek(end)
    after = stream.read(16)
    blank = len(after) - len(after.lstrip(b"\r\n\0"))
    is_whole = after.startswith(_BLANK_LINES) or blank == len(after)  # else the length is wrong
    return (end + blank, True) if is_whole else (place.start, False)


def _end_of_member(stream: io.FileIO, start: int) -> tuple[int, bool]:
    """A file that is one member, in which records have no places, is taken from its beginning."""
    block = stream.read(_STEP)
    if not block.startswith(_GZIP):
        start = 0
        stream.seek(start)
        block = stream.read(_STEP)
    inflate, end = zlib.decompressobj(zlib.MAX_WBITS | 16), start
    try:
        while block:
            end += len(block)
            waiting = block
            while waiting and not inflate.eof:  # at most _STEP at a time, of a decompression bomb too
                inflate.decompress(waiting, _STEP)
                waiting = inflate.unconsumed_tail
            if inflate.eof:
                return end - len(inflate.unused_data.lstrip(b"\0")), True
            block = stream.read(_STEP)
    except zlib.error:
        pass
    return start, False


def _next_start(stream: io.FileIO, position: int, compressed: bool) -> int | None:
    """Where a record may begin, at `position` or later."""
    mark, offset = (_GZIP, 0) if compressed else (b"\nWARC/1.", 1)
    position = max(position - offset, 0)
    held = b""
    try:
        stream.seek(position)
        while block := stream.read(_STEP):
            held += block
            if (found := held.find(mark)) >= 0:
                return position + found + offset
            kept = held[-len(mark) + 1 :]
            position, held = position + len(held) - len(kept), kept
    except OSError:
        pass
    return None


def _lost(number: int, start: int, end: int, why: str) -> Rejected:
    """A loss between two records; it ends where the later one begins."""
    lines = _about(number, start, end - start)
    detail = f"{end - start:,} bytes after {number:,} records, about {lines:,} records"
    return Rejected(number + 1, f"{UNREADABLE} up to the next record: {why}", lines, detail)


def _rest_lost(number: int, start: int, size: int, why: str) -> Rejected:
    """The loss of the rest of a file. If it is cut, as much is assumed missing as was read."""
    if why in (_CUT, _NO_LENGTH):
        lines = max(number, 1)
        said = "how much is missing cannot be told, perhaps as much again"
    else:
        lines = _about(number, start, size - start)
        said = f"{size - start:,} of the file's {size:,} bytes are lost"
    detail = f"{number:,} records were read before; {said}, about {lines:,} records"
    return Rejected(number + 1, f"{UNREADABLE} from here on: {why}", lines, detail)


def _about(number: int, start: int, n_bytes: int) -> int:
    """How many records a number of bytes holds, by those before."""
    return max(1, n_bytes * number // start if number and start else n_bytes // _RECORD_BYTES)
