"""Damaged WARC files: records that are untouched are read, and no loss is silent."""

import gzip
import io
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator
from warcio.warcwriter import WARCWriter

from data_prep.reading.archives import Record, read_archive
from data_prep.reading.batches import MAX_LINE_BYTES, UNREADABLE, Rejected
from tests.data_prep.web_pages import KINDS, response

SHARED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def archive(compressed: bool) -> tuple[bytes, list[int], list[tuple[str, bytes]]]:
    """A file, where its records begin and the last one ends, and (id, content) of each by warcio."""
    file, starts = io.BytesIO(), []
    writer = WARCWriter(file, gzip=compressed)
    for name, html in KINDS.items():
        starts.append(file.tell())
        writer.write_record(response(writer, f"http://a.de/{name}", html.encode()))
    file.seek(0)
    contents = [
        (record.rec_headers.get_header("WARC-Record-ID"), record.raw_stream.read())
        for record in ArchiveIterator(file, no_record_parse=True)
    ]
    return file.getvalue(), [*starts, len(file.getvalue())], contents


ARCHIVES = {suffix: archive(suffix == ".gz") for suffix in (".warc", ".gz")}
suffixes = st.sampled_from(sorted(ARCHIVES))


def seam(suffix: str, at: int) -> int | None:
    """The record at whose beginning, of which no checksum tells, a place is: blank lines (or a checksum's
    zeros) before it and its header up to the id (or the start of its gzip header)."""
    data, places, _ = ARCHIVES[suffix]
    seams = (range(first - 4, max(data.find(b"<urn:", first), first + 4)) for first in places)
    return next((number for number, places in enumerate(seams) if at in places), None)


def read(tmp_path: Path, suffix: str, data: bytes) -> tuple[list[tuple[str, bytes]], list[Rejected]]:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(data)
    found = list(read_archive(file))
    records = [each for each in found if isinstance(each, Record)]
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    losses = [each for each in found if isinstance(each, Rejected)]
    assert all(loss.reason.startswith(UNREADABLE) and loss.lines > 0 for loss in losses)
    return [(record.headers.get("warc-record-id", ""), record.content or b"") for record in records], losses


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_a_sound_file_has_warcios_records(tmp_path: Path, suffix: str):
    data, _, contents = ARCHIVES[suffix]
    assert read(tmp_path, suffix, data) == (contents, [])


@SHARED
@given(suffix=suffixes, share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_has_the_records_before_the_cut(tmp_path: Path, suffix: str, share: float):
    data, places, contents = ARCHIVES[suffix]
    cut = 1 + int(share * (len(data) - 1))
    ends = [end - (0 if suffix == ".gz" else len(b"\r\n\r\n")) for end in places[1:]]
    n_whole = sum(end <= cut for end in ends)
    records, losses = read(tmp_path, suffix, data[:cut])
    assert records == contents[:n_whole]
    at_an_end = n_whole and ends[n_whole - 1] <= cut <= places[n_whole]
    assert len(losses) == (not at_an_end)


@SHARED
@given(
    suffix=suffixes,
    share=st.floats(0, 1, exclude_max=True),
    n=st.integers(0, 2000),
    put=st.binary(max_size=900),
)
@example(suffix=".warc", share=0.45051885085997384, n=2000, put=b"")  # ends where a record begins
@example(suffix=".warc", share=0.25, n=361, put=b"")  # the length takes in a header
@example(suffix=".warc", share=0.9047646939113524, n=988, put=b"\0")  # joins two headers
@example(suffix=".warc", share=0.0089, n=37382, put=b"x")  # the next record is the content
def test_damage_costs_only_the_records_that_it_hits(
    tmp_path: Path, suffix: str, share: float, n: int, put: bytes
):  # fmt: skip
    data, places, contents = ARCHIVES[suffix]
    start = int(share * len(data))
    end = min(start + n, len(data))
    records, losses = read(tmp_path, suffix, data[:start] + put + data[end:])
    spans = zip(places, places[1:], contents, strict=False)
    # A record without compression is found by the line end before it too.
    after = end + (suffix == ".warc")
    untouched = [content for first, last, content in spans if last <= start or first >= after]
    if suffix == ".gz":
        assert [record for record in records if record in contents] == records  # checksums
    assert [record for record in records if record in untouched] == untouched
    seams = {seam(suffix, start), seam(suffix, end)}
    is_deletion = len(seams) == 2 and None not in seams  # what remains can be a sound file
    if put and len(records) < len(contents) and not is_deletion:
        assert losses or any(record not in contents for record in records)  # joined, without a checksum


@pytest.mark.parametrize("between", [b"\0", bytes(512), b"\0x"])
def test_zeros_between_compressed_records_are_no_loss(tmp_path: Path, between: bytes):
    data, places, contents = ARCHIVES[".gz"]
    records, losses = read(tmp_path, ".gz", data[: places[4]] + between + data[places[4] :])
    assert records == contents
    assert len(losses) == between.count(b"x")


@pytest.mark.parametrize(("first", "last", "put"), [(30, 9, b"\0"), (150, 15, b""), (150, 150, bytes(4096))])
def test_a_header_with_parts_of_two_is_a_loss(tmp_path: Path, first: int, last: int, put: bytes):
    data, places, contents = ARCHIVES[".warc"]
    damaged = data[: places[3] + first] + put + data[places[5] + last :]
    records, losses = read(tmp_path, ".warc", damaged)
    assert records == contents[:3] + contents[6:]
    assert len(losses) == 1


def test_a_crawled_archive_is_one_record(tmp_path: Path):
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=False)
    for url, page in (("http://a.de/a.warc", ARCHIVES[".warc"][0]), ("http://a.de/", b"<p>Zur Sache.</p>")):
        writer.write_record(response(writer, url, page))
    records, losses = read(tmp_path, ".warc", file.getvalue())
    assert [content.partition(b"\r\n\r\n")[2] for _, content in records] == [
        ARCHIVES[".warc"][0],
        b"<p>Zur Sache.</p>",
    ]
    assert losses == []


def test_a_gzip_that_is_one_member_is_read_and_its_cut_is_said(tmp_path: Path):
    data, _, contents = ARCHIVES[".warc"]
    whole = gzip.compress(data)
    assert read(tmp_path, ".gz", whole) == (contents, [])
    records, losses = read(tmp_path, ".gz", whole[:-20])
    assert records == contents[: len(records)]
    assert len(losses) == 1


@pytest.mark.parametrize("head", [b"", b"WARC/1.0\r\nX: "])
def test_bombs_are_read_past_in_little_memory(tmp_path: Path, head: bytes):
    """Zeros without a header, and a header that does not end."""
    zeros, bomb = bytes(1 << 20), zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    packed = bomb.compress(head) + b"".join(bomb.compress(zeros) for _ in range(300)) + bomb.flush()
    data, _, contents = ARCHIVES[".gz"]
    tracemalloc.start()
    try:
        records, losses = read(tmp_path, ".gz", data + packed + data)
        assert tracemalloc.get_traced_memory()[1] < MAX_LINE_BYTES
    finally:
        tracemalloc.stop()
    assert records == contents + contents
    assert len(losses) == 1
