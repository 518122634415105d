"""Ragged rows against lists of lists."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.rows.rows import Rows, ragged_ranges, read_rows

Segment = tuple[int, int, int]
LISTS = st.lists(st.lists(st.tuples(*[st.integers(0, 99)] * 3), min_size=1, max_size=4), max_size=6)


def from_lists(lists: list[list[Segment]]) -> Rows:
    offsets = np.array([0, *itertools.accumulate(map(len, lists))])
    segments = np.array([segment for row in lists for segment in row], np.int32).reshape(-1, 3)
    return Rows(offsets, *segments.T)


def to_lists(rows: Rows) -> list[list[Segment]]:
    segments = list(zip(*(x.tolist() for x in (rows.document, rows.start, rows.length)), strict=True))
    return [segments[first:last] for first, last in itertools.pairwise(rows.offsets.tolist())]


@given(LISTS, st.data())
def test_part_take_and_concatenate_are_those_of_lists(lists, data):
    rows = from_lists(lists)
    first = data.draw(st.integers(0, len(lists)))
    last = data.draw(st.integers(first, len(lists)))
    assert to_lists(rows.part(first, last)) == lists[first:last]
    numbers = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=9)) if lists else []
    assert to_lists(rows.take(np.array(numbers, int))) == [lists[number] for number in numbers]
    turned = Rows.concatenate([rows.part(first, len(lists)), rows.part(0, first)])
    assert to_lists(turned) == lists[first:] + lists[:first]
    assert to_lists(Rows.concatenate([])) == []
    assert rows.targets_per_row.tolist() == [sum(length for _, _, length in row) for row in lists]
    assert rows.row_of_segment.tolist() == [number for number, row in enumerate(lists) for _ in row]


def test_a_row_reads_each_segment_and_one_token_more_from_its_own_shard():
    rows = from_lists([[(0, 0, 2), (3, 0, 1)], [(1, 5, 3)]])
    shards = [np.arange(100), np.arange(100, 200)]
    first, second = read_rows(rows, np.array([10, 40, 25]), shards)
    assert first.tokens.tolist() == [10, 11, 12, 40, 41]
    assert first.lengths.tolist() == [2, 1]
    assert second.tokens.tolist() == [125, 126, 127, 128]


def test_ragged_ranges():
    assert ragged_ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ragged_ranges(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []
