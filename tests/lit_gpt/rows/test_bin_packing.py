"""Packing's arithmetic against packers that place one segment at a time."""

import bisect
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.cli import InputError
from lit_gpt.rows.bin_packing import covers, pack_lengths
from lit_gpt.rows.rows import Rows

STRATEGIES = ["best_fit", "concat", "one_per_row"]
LENGTHS = st.lists(st.integers(0, 70), max_size=60).map(lambda lengths: np.array(lengths, dtype=np.int64))
BLOCKS = st.integers(1, 40)


def rows_of(packing: Rows) -> list[list[tuple[int, int, int]]]:
    segments = list(
        zip(packing.document.tolist(), packing.start.tolist(), packing.length.tolist(), strict=True)
    )
    bounds = packing.offsets.tolist()
    assert (bounds[0], bounds[-1]) == (0, len(segments))
    return [segments[begin:end] for begin, end in itertools.pairwise(bounds)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(LENGTHS, BLOCKS)
def test_each_target_is_in_exactly_one_row(strategy, lengths, block_size):
    packing = pack_lengths(lengths, block_size, strategy)
    seen = sorted(
        (document, place)
        for row in rows_of(packing)
        for document, start, length in row
        for place in range(start, start + length)
    )
    assert seen == [(document, place) for document, n in enumerate(lengths) for place in range(n)]
    sums = [sum(length for _, _, length in row) for row in rows_of(packing)]
    assert packing.targets_per_row.tolist() == sums
    assert all(0 < used <= block_size for used in sums)
    assert covers(packing, lengths, block_size)
    assert packing.offsets.dtype == np.int64
    assert {packing.document.dtype, packing.start.dtype, packing.length.dtype} == {np.dtype(np.int32)}


@given(LENGTHS, BLOCKS)
@settings(max_examples=300)
def test_best_fit_leaves_what_placing_one_by_one_leaves(lengths, block_size):
    left: list[int] = []  # sorted
    rests = [n % block_size for n in lengths.tolist() if n % block_size]
    for segment in sorted(rests, reverse=True):
        fullest = bisect.bisect_left(left, segment)
        room = left.pop(fullest) if fullest < len(left) else block_size
        bisect.insort(left, room - segment)
    full_rows = sum(n // block_size for n in lengths.tolist())

    packing = pack_lengths(lengths, block_size)
    assert sorted((block_size - packing.targets_per_row).tolist()) == [0] * full_rows + left


@given(LENGTHS, BLOCKS)
def test_only_documents_longer_than_a_row_are_cut(lengths, block_size):
    for strategy in ("best_fit", "one_per_row"):
        for row in rows_of(pack_lengths(lengths, block_size, strategy)):
            for document, start, length in row:
                assert start % block_size == 0
                assert length == min(block_size, lengths[document] - start)


@given(LENGTHS, BLOCKS)
def test_concat_is_one_line_cut_at_every_row(lengths, block_size):
    line = [(document, place) for document, n in enumerate(lengths) for place in range(n)]
    rows = rows_of(pack_lengths(lengths, block_size, "concat"))
    expanded = [[(d, start + place) for d, start, length in row for place in range(length)] for row in rows]
    assert expanded == [line[begin : begin + block_size] for begin in range(0, len(line), block_size)]


@given(LENGTHS, BLOCKS)
def test_rows_stand_by_their_first_documents(lengths, block_size):
    rows = rows_of(pack_lengths(lengths, block_size))
    assert all(row == sorted(row) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_uneven_lengths_waste_next_to_nothing():
    """Web-like lengths: the waste is what the last row leaves, for nearly every size of row."""
    lengths = np.random.default_rng(0).lognormal(np.log(400), 1.3, 40_000).astype(np.int64)
    for block_size in (1024, 2048, 4096):
        packing = pack_lengths(lengths, block_size)
        assert 1 - lengths.sum() / (packing.n_rows * block_size) < 0.0005
        assert covers(packing, lengths, block_size)


def test_covers_sees_what_is_wrong():
    lengths = np.array([5, 0, 12, 3])
    good = pack_lengths(lengths, 8)
    assert covers(good, lengths, 8)
    assert not covers(good, lengths, 7)
    for wrong in ([5, 0, 12, 4], [5, 0, 12, 2], [5, 1, 12, 3], [5, 0, 12, 3, 1]):
        assert not covers(good, np.array(wrong), 8), wrong
    for name in ("document", "start", "length"):
        parts = {part: getattr(good, part).copy() for part in ("offsets", "document", "start", "length")}
        parts[name][1] += 1
        assert not covers(Rows(**parts), lengths, 8), name


def test_rows_longer_than_uint16():
    lengths = np.array([100_000, 70_000, 30_000, 65_536, 1])
    packing = pack_lengths(lengths, 100_000)
    assert packing.n_rows == 3
    assert covers(packing, lengths, 100_000)


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="'fancy' is unknown: choose best_fit"):
        pack_lengths(np.array([1]), 8, "fancy")
    with pytest.raises(InputError, match="block_size is 0"):
        pack_lengths(np.array([1]), 0)
