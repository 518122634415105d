"""For any content of a file, memory stays bounded, bad lines are named with a reason, the rest is read."""

import errno
import gzip
import json
import multiprocessing
import os
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.reading import batches
from data_prep.reading.batches import MAX_LINE_BYTES, read_batches
from data_prep.reading.documents import parse_batch, read_documents
from data_prep.reading.rejects import Rejects
from lit_gpt.cli import InputError

GOOD = [b'{"id": "a", "text": "eins"}', '{"id": "ß", "text": "zwei\\nZeilen ☃"}'.encode()]


def read(file: Path, **fields: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(id, text) of all documents, and (line, reason) of the rejected lines."""
    rejects = Rejects()
    documents = [(each.id, each.text) for each in read_documents([file], rejects, **fields)]
    return documents, [(place.rpartition(":")[2], reason) for place, reason in rejects.places]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_gives_the_same_documents(tmp_path: Path, suffix: str):
    file = tmp_path / f"x.jsonl{suffix}"
    one, two = (COMPRESS[suffix](line + b"\r\n") for line in GOOD)
    file.write_bytes(one + two)  # compressed files may be put one after another
    assert read(file) == ([("a", "eins"), ("ß", "zwei\nZeilen ☃")], [])
    file.write_bytes(COMPRESS[suffix](b"\n\n" + b"\n \n".join(GOOD)))
    assert [place.source_line for place in read_documents([file], Rejects())] == [3, 5]


LINES: list[tuple[bytes, str | None]] = [
    (b"", None),
    (b" \t\r", None),
    (b"{", "not JSON"),
    (b'{"text": "x"} {"text": "y"}', "not JSON"),
    (b"[1, 2]", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b'{"id": "x"}', "no field text"),
    (b'{"text": null}', "is no string"),
    (b'{"text": ["a"]}', "is no string"),
    (b'{"text": "x", "id": {"a": 1}}', "neither a string nor a whole number"),
    (b'{"text": "x", "id": true}', "neither a string nor a whole number"),
    (b'{"text": "\xff"}', "not UTF-8"),
    ('{"text": "ä"}'.encode("latin-1"), "not UTF-8"),
    ('{"text": "ä"}'.encode("utf-16"), "not"),
    (b'{"text": "\xed\xa0\x80"}', "not UTF-8"),
    (b'{"text": "\\ud800"}', "not JSON"),
    (b'{"text": "\\udc00 \\ud800"}', "not JSON"),
    (b'{"text": "a\0b"}', "not JSON"),
    (b'{"text": "a\\u0000b"}', "NUL"),
    (b'{"text": "a", "id": "\\u0000"}', "NUL"),
    (b'{"text": "a", "n": NaN}', "not JSON"),
    (b'{"text": "a", "n": ' + b"9" * 10_000 + b"}", "not JSON"),
    (b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
    (b'{"n": ' * 100_000 + b"1" + b"}" * 100_000, "not JSON"),
    (b'{"text": "a", "n": ' + b"[" * 300 + b"]" * 300 + b"}", "nested too deep"),
    (b'{"text": "' + b"[{" * 300 + b'", "n": [[[1]]]}', None),
    (b'{"text": "a", "text": "b"}', "given twice"),
    (b'{"id": "a", "text": "b", "id": "c"}', "given twice"),
    (b'{"text": "' + b"x" * MAX_LINE_BYTES + b'"}', "longer than 32 MiB"),
]


@pytest.mark.parametrize("last", [False, True], ids=["within", "at the end"])
def test_unusable_lines_are_named_and_the_rest_is_read(tmp_path: Path, last: bool):
    for number, (line, reason) in enumerate(LINES):
        file = tmp_path / f"{number}.jsonl"
        file.write_bytes(b"\n".join([GOOD[0], line] if last else [GOOD[0], line, GOOD[1]]))
        documents, rejected = read(file)
        texts = [text for _, text in documents if not text.startswith("[{")]
        assert texts == ["eins"] + ["zwei\nZeilen ☃"] * (not last), line[:50]
        assert len(rejected) == (reason is not None), line[:50]
        for place, found in rejected:
            assert place == "2"
            assert reason is not None
            assert reason in found
            assert len(found) < 200


def test_what_looks_strange_and_is_not(tmp_path: Path):
    file = tmp_path / "x.jsonl"
    lines = [
        {"text": "a", "meta": {"text": "b", "id": 2}, "id": 7},
        {"text": 'ein "text" im Text', "id": "text"},
        {"raw_content": "c", "doc_id": ""},
        {"text": "", "content": "d", "id": None},
        {"text": "", "id": "../../x\n\"'/" + "y" * 10_000},
    ]
    content = "\r\n".join(json.dumps(line) for line in lines)
    file.write_bytes(b"\xef\xbb\xbf" + content.encode())
    documents, rejected = read(file)
    assert rejected == []
    texts = ["a", 'ein "text" im Text', "c", "d", ""]
    ids = ["7", "text", f"{file}:3", f"{file}:4", lines[4]["id"]]
    assert documents == list(zip(ids, texts, strict=True))
    [first, *_] = read_documents([file], Rejects())
    assert first.metadata == {"meta": {"text": "b", "id": 2}}


def test_a_document_of_ten_million_bytes(tmp_path: Path):
    file = tmp_path / "x.jsonl"
    text = "Wörter " * 1_300_000
    file.write_bytes(json.dumps({"text": text}).encode() + b"\n" + GOOD[0])
    documents, rejected = read(file)
    assert [len(each) for _, each in documents] == [len(text), 4]
    assert rejected == []


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".gz", "truncated"), (".gz", "not"), (".zst", "truncated"), (".zst", "not"), (".zst", "flipped")],
)
def test_a_broken_stream_gives_what_comes_before(tmp_path: Path, suffix: str, damage: str):
    lines = [json.dumps({"id": str(n), "text": f"{n} {n * 7919 % 10007} Wörter"}) for n in range(100_000)]
    whole = "\n".join(lines).encode()
    data = bytearray(COMPRESS[suffix](whole))
    if damage == "truncated":
        del data[-len(data) // 10 :]
    elif damage == "flipped":
        data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    else:
        data = bytearray(whole)
    broken, good = tmp_path / f"broken.jsonl{suffix}", tmp_path / f"good.jsonl{suffix}"
    broken.write_bytes(data)
    good.write_bytes(COMPRESS[suffix](GOOD[0]))
    rejects = Rejects(limit=len(lines))
    documents = [each.id for each in read_documents([broken, good], rejects)]
    assert documents[-1] == "a"
    assert documents[:-1] == [str(n) for n in range(len(documents) - 1)]
    assert [(place, reason[:10]) for place, reason in rejects.places] == [
        (f"{broken}:{len(documents)}", "unreadable")
    ]
    assert damage != "truncated" or len(documents) > 80_000
    with pytest.raises(
        InputError, match=r"more than 1000 unusable lines, the last .* lines, .* were read before"
    ):
        list(read_documents([broken, good], Rejects()))


def test_what_is_lost_of_a_file_is_said_and_counted_by_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lines = [json.dumps({"id": str(n), "text": f"{n} {n * 7919 % 10007} Wörter"}) for n in range(30_000)]
    whole = "\n".join(lines).encode()
    zst, gz, plain = tmp_path / "x.jsonl.zst", tmp_path / "x.jsonl.gz", tmp_path / "x.jsonl"
    compressed = COMPRESS[".zst"](whole)
    zst.write_bytes(compressed[: len(compressed) // 2])
    compressed = COMPRESS[".gz"](whole)
    gz.write_bytes(compressed[: len(compressed) // 2])
    plain.write_bytes(whole)

    def lost(file: Path) -> tuple[int, int, str]:
        """(documents read, lines that count as lost, what is said)"""
        rejects = Rejects(limit=10**9)
        n_documents = sum(1 for _ in read_documents([file], rejects))
        [loss], [n_lines] = rejects.losses(), rejects.counts.values()
        assert loss.startswith(f"{file}:{n_documents + 1}: unreadable from here on")
        return n_documents, n_lines, loss

    # A .zst may say how much it held; what a .gz held is not known.
    n_documents, n_lines, loss = lost(zst)
    assert n_lines == pytest.approx(30_000 - n_documents, rel=0.05)
    assert f"of {len(whole):,} bytes are missing" in loss
    n_documents, n_lines, loss = lost(gz)
    assert n_lines == pytest.approx(n_documents, rel=0.05)
    assert "how much is missing cannot be told" in loss

    good = len(whole) // 3
    read = batches.HashingReader.read

    def fail(self: batches.HashingReader, size: int | None = -1) -> bytes:
        if self.tell() >= good:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self, min(size or good, good - self.tell()))

    monkeypatch.setattr(batches.HashingReader, "read", fail)
    n_documents, n_lines, loss = lost(plain)
    assert n_documents == pytest.approx(10_000, rel=0.05)
    assert n_lines == pytest.approx(20_000, rel=0.05)
    assert "Input/output error" in loss
    assert f"{len(whole) - good:,} of the file's {len(whole):,} bytes are lost" in loss
    assert [batch.file_hash for batch in read_batches(plain)][-1] == ""


def test_parquet_is_read_like_lines(tmp_path: Path):
    file = tmp_path / "x.parquet"
    texts = [f"Text {n}" for n in range(1000)]
    texts[3] = "a\0b"
    texts[700] = "x" * (MAX_LINE_BYTES + 1)
    columns = {"id": [str(n) for n in range(1000)], "text": texts, "score": [n / 2 for n in range(1000)]}
    pq.write_table(pa.table(columns), file, row_group_size=300)
    documents, rejected = read(file)
    assert documents == [(str(n), texts[n]) for n in range(1000) if n not in (3, 700)]
    assert [place for place, _ in rejected] == ["4", "701"]
    [first, *_] = read_documents([file], Rejects())
    assert (first.source_line, first.metadata) == (1, {"score": 0.0})


def test_broken_parquet_gives_the_row_groups_that_are_whole(tmp_path: Path):
    file = tmp_path / "x.parquet"
    texts = pa.table({"text": [f"Text {n} " * 50 for n in range(1000)]})
    pq.write_table(texts, file, row_group_size=250, compression="zstd", use_dictionary=False)
    whole = file.read_bytes()
    start = pq.ParquetFile(file).metadata.row_group(2).column(0).data_page_offset
    file.write_bytes(whole[:start] + b"\xff" * 60 + whole[start + 60 :])
    documents, [(place, reason)] = read(file)
    assert [each[0].rpartition(":")[2] for each in documents] == [
        str(n) for n in range(1, 1001) if not 500 < n <= 750
    ]
    assert (place, reason[:10]) == ("501", "unreadable")
    assert "250 of 1,000 rows are lost" in reason
    for content in (whole[: len(whole) // 2], b"PAR1", b"x" * 500):
        file.write_bytes(content)
        documents, [(place, reason)] = read(file)
        assert (documents, place, reason[:10]) == ([], "1", "unreadable")


def test_parquet_text_that_is_not_utf8(tmp_path: Path):
    file = tmp_path / "x.parquet"
    column = pa.array([b"gut", b"schlecht \xff", b"gut"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), file)
    documents, rejected = read(file)
    assert [text for _, text in documents] == ["gut", "gut"]
    assert rejected == [("2", "not UTF-8")]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.zst", "x.parquet"])
def test_going_on_from_any_batch_gives_the_rest(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", 1000)
    file = tmp_path / name
    rows = [{"id": str(n), "text": "Wort " * (n % 40)} for n in range(300)]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=110)
    else:
        lines = "\n".join(json.dumps(row) for row in rows).encode()
        file.write_bytes(COMPRESS[".zst" if name.endswith(".zst") else ""](lines))

    def documents(first_line: int) -> list[list[tuple[str, int]]]:
        parsed = [parse_batch(batch, ["text"], ["id"]) for batch in read_batches(file, first_line)]
        return [[(each.id, each.source_line) for each in documents] for documents, _ in parsed]

    all_batches = documents(1)
    assert len(all_batches) > 3
    for number, batch in enumerate(read_batches(file)):
        if batch.file_hash is None:
            assert documents(batch.next_line) == all_batches[number + 1 :]
    assert list(chain(*all_batches)) == [(row["id"], n + 1) for n, row in enumerate(rows)]


def test_a_file_without_the_text_field_is_refused(tmp_path: Path):
    file, other = tmp_path / "x.jsonl", tmp_path / "other.jsonl"
    file.write_bytes(GOOD[0])
    other.write_bytes(b'{"body": "x", "id": 1}\n' * 3)
    with pytest.raises(InputError, match="has the fields body, id, none of text"):
        read(other)
    assert [text for _, text in read(other, text_fields=["body"])[0]] == ["x"] * 3
    with pytest.raises(InputError, match=r"none of body"):
        read(file, text_fields=["body"])


def test_a_stream_with_garbage_after_it_gives_all_it_holds(tmp_path: Path):
    lines = [json.dumps({"id": str(n), "text": f"{n * 7919 % 10007} Wörter"}) for n in range(5000)]
    for suffix, garbage in ((".zst", b"garbage"), (".gz", b"\0" * 512)):
        file = tmp_path / f"x.jsonl{suffix}"
        file.write_bytes(COMPRESS[suffix]("\n".join([*lines, ""]).encode()) + garbage)
        rejects = Rejects(limit=10_000)
        assert sum(1 for _ in read_documents([file], rejects)) == 5000
        [loss] = rejects.losses()
        assert f"{file}:5001: unreadable from here on" in loss


def test_byte_order_marks_of_files_put_one_after_another(tmp_path: Path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"".join(b"\xef\xbb\xbf" + line + b"\n" for line in GOOD))
    assert read(file) == ([("a", "eins"), ("ß", "zwei\nZeilen ☃")], [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one line", "lines", "nested"])
def test_a_bomb_stays_small_in_memory(tmp_path: Path, kind: str):
    """A gigabyte that is a few hundred kilobytes compressed, read under a limit on memory."""
    file = tmp_path / "bomb.jsonl.zst"
    piece = {"one line": b"a" * (1 << 20), "lines": b"\n" * (1 << 20), "nested": b"[" * (1 << 20)}[kind]
    with zstandard.open(file, "wb") as bomb:
        bomb.write(GOOD[0] + b"\n")
        for _ in range(1024):
            bomb.write(piece)
        bomb.write(b"\n" + GOOD[1])
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        documents, rejected, megabytes = pool.apply(_read_measured, (file,))
    assert [name for name, _ in documents] == ["a", "ß"]
    assert [reason for _, reason in rejected] == ([] if kind == "lines" else ["longer than 32 MiB"])
    assert megabytes < 400, kind


def _read_measured(file: Path) -> tuple[list, list, float]:
    result = read(file)
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return *result, int(peak) / 1024
