"""A shard's index by a parser of the test's own, Megatron-LM's indices, documents by number and id."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_gpt.cli import InputError
from lit_gpt.store.shard_files import (
    ROW_GROUP,
    DocumentColumns,
    DocumentInfo,
    find_id,
    read_documents,
    read_index,
    write_documents,
    write_index,
)
from lit_gpt.store.token_store import TokenStore


def index_bytes(lengths: list[int], bounds: list[int], itemsize: int = 2, first: int = 0) -> bytes:
    """An index as the format's description has it: sequences one after another from byte `first` on."""
    code = {2: 8, 4: 4}[itemsize]
    pointers = [first + itemsize * sum(lengths[:number]) for number in range(len(lengths))]
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(lengths), len(bounds))
    arrays = struct.pack(f"<{len(lengths)}i{len(pointers)}q{len(bounds)}q", *lengths, *pointers, *bounds)
    return header + arrays


@given(lengths=st.lists(st.integers(0, 2**31 - 1), max_size=20), dtype=st.sampled_from(["<u2", "<i4"]))
def test_what_is_written_is_the_format(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], dtype: str
):
    path = tmp_path_factory.mktemp("index") / "x.idx"
    write_index(path, np.dtype(dtype), np.array(lengths, np.int32))
    itemsize = np.dtype(dtype).itemsize
    assert path.read_bytes() == index_bytes(lengths, list(range(len(lengths) + 1)), itemsize)
    index = read_index(path, sum(lengths) * itemsize)
    assert index.dtype == np.dtype(dtype)
    assert index.lengths.tolist() == lengths
    assert index.starts.tolist() == [sum(lengths[:number]) for number in range(len(lengths))]


@given(documents=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8))
def test_documents_of_several_sequences(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]):
    path = tmp_path_factory.mktemp("index") / "x.idx"
    lengths = [length for document in documents for length in document]
    bounds = np.append(0, np.cumsum([len(document) for document in documents])).astype(int).tolist()
    path.write_bytes(index_bytes(lengths, bounds, first=6))
    index = read_index(path, 6 + 2 * sum(lengths))
    assert index.lengths.tolist() == [sum(document) for document in documents]
    tokens = 0
    for document, start in zip(documents, index.starts.tolist(), strict=True):
        assert start == 3 + tokens or not document
        tokens += sum(document)


OFFSETS = st.integers(0, 40) | st.integers(-(2**63), 2**63 - 1) | st.integers(2**63 - 300, 2**63 - 1)
BOUNDS = st.integers(0, 4) | st.sampled_from([-1, 2**62, 2**63 - 1, -(2**63), -(2**63) + 3])


@given(
    itemsize=st.sampled_from([2, 4]),
    sequences=st.lists(st.tuples(st.integers(-1, 12) | st.just(2**31 - 1), OFFSETS), max_size=4),
    inner=st.none() | st.lists(BOUNDS, max_size=6),
    data_bytes=st.integers(0, 60),
)
@example(2, [(64, 2**63 - 64)], None, 14)
@example(4, [(1, 0), (2**31 - 1, 2**63 - 4)], None, 16)
@example(2, [(1, 0), (1, 2)], [2**63 - 1, -(2**63), -1], 4)
def test_no_document_that_is_accepted_leaves_the_shard(
    tmp_path_factory, itemsize, sequences, inner, data_bytes
):
    """Compared in Python's integers, which do not wrap."""
    path = tmp_path_factory.mktemp("index") / "x.idx"
    lengths, offsets = [each[0] for each in sequences], [each[1] for each in sequences]
    bounds = list(range(len(lengths) + 1)) if inner is None else [0, *inner, len(lengths)]
    content = index_bytes(lengths, bounds, itemsize)
    pointers_at = 34 + 4 * len(lengths)
    pointers = struct.pack(f"<{len(offsets)}q", *offsets)
    path.write_bytes(content[:pointers_at] + pointers + content[pointers_at + len(pointers) :])
    try:
        index = read_index(path, data_bytes)
    except InputError:
        return
    assert len(index.lengths) == len(bounds) - 1
    for length, start in zip(index.lengths.tolist(), index.starts.tolist(), strict=True):
        assert length >= 0
        assert length == 0 or 0 <= start * itemsize <= data_bytes - length * itemsize


def test_an_index_that_is_no_regular_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.idx")
    with pytest.raises(InputError, match="not a regular file"):
        read_index(tmp_path / "x.idx", 14)


GOOD = index_bytes([3, 4], [0, 1, 2])
POINTERS_AT = 34 + 2 * 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an index"),
        (b"NOTANIDX" + GOOD[8:], "not an index"),
        (GOOD[:20], "not an index"),
        *[(GOOD[:size], "truncated") for size in range(34, len(GOOD), 5)],
        (GOOD + b"\0\0", "multimodal"),
        (GOOD[:9] + struct.pack("<Q", 2) + GOOD[17:], "version 2"),
        (GOOD[:17] + b"\5" + GOOD[18:], "dtype code 5"),
        (index_bytes([3, 5], [0, 1, 2]), "outside its data"),
        (index_bytes([-1, 4], [0, 1, 2]), "outside its data"),
        (GOOD[:POINTERS_AT] + struct.pack("<q", -2) + GOOD[POINTERS_AT + 8 :], "outside its data"),
        (GOOD[:POINTERS_AT] + struct.pack("<q", 1) + GOOD[POINTERS_AT + 8 :], "outside its data"),
        (index_bytes([3, 4], [0, 1]), "do not cover"),
        (index_bytes([3, 4], [0, 2, 1]), "do not cover"),
        (index_bytes([3, 4], [0, 2])[:POINTERS_AT] + struct.pack("<qqqq", 8, 0, 0, 2), "one after another"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "x.idx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_index(path, 14)


@pytest.mark.slow
def test_megatron_reads_our_shards(train_store_dir: Path):
    from megatron.core.datasets import indexed_dataset  # takes seconds

    store = TokenStore.open(train_store_dir)
    for shard, entry in enumerate(store.manifest.shards):
        theirs = indexed_dataset.IndexedDataset(str(train_store_dir / entry.name))
        assert len(theirs) == entry.n_documents
        for document in range(entry.n_documents):
            np.testing.assert_array_equal(theirs[document], store.document_tokens(shard, document))


ids = st.one_of(
    st.text(max_size=8), st.sampled_from(["../../etc/passwd", "a\nb", "'\"; --", "ü" * 10_000, "0"])
)


@settings(max_examples=50)
@given(st.lists(ids, min_size=1, max_size=30))
def test_every_id_finds_all_its_documents(tmp_path_factory: pytest.TempPathFactory, names: list[str]):
    base = tmp_path_factory.mktemp("table") / "shard"
    lines = list(range(len(names)))
    write_documents(base, [DocumentColumns(names, ["f"] * len(names), lines, lines)])
    for name in {*names, "not there"}:
        expected = [number for number, each in enumerate(names) if each == name]
        assert find_id(base.with_suffix(".ids"), name).tolist() == expected
    infos = read_documents(base.with_suffix(".docs.parquet"), np.arange(len(names))[::-1])
    assert infos == [DocumentInfo(names[line], "f", line, line) for line in reversed(lines)]


def test_lookups_over_row_groups(tmp_path: Path):
    count = 2 * ROW_GROUP + 5

    def columns(numbers: range) -> DocumentColumns:
        return DocumentColumns([f"d{number}" for number in numbers], ["f"] * len(numbers), numbers, numbers)

    write_documents(tmp_path / "whole", [columns(range(count))])
    write_documents(tmp_path / "parts", [columns(range(ROW_GROUP)), columns(range(ROW_GROUP, count))])
    wanted = np.array([count - 1, 0, ROW_GROUP, ROW_GROUP - 1, ROW_GROUP, 2 * ROW_GROUP])
    for name in ("whole", "parts"):
        infos = read_documents(tmp_path / f"{name}.docs.parquet", wanted)
        assert [info.id for info in infos] == [f"d{number}" for number in wanted]
        assert find_id(tmp_path / f"{name}.ids", f"d{count - 2}").tolist() == [count - 2]
