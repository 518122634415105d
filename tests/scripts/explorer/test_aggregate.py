"""Few points for many steps: against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.explorer.aggregate import (
    bucket_size,
    extremes,
    hours_of,
    in_view,
    largest_spike,
    one_per_bucket,
)

VALUES = st.lists(
    st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=200
)


@given(values=VALUES, limit=st.integers(1, 50), data=st.data())
def test_least_and_greatest_of_every_bucket_are_drawn_and_nothing_that_is_not_finite(values, limit, data):
    first = data.draw(st.integers(0, len(values)))
    end = data.draw(st.integers(first, len(values)))
    array = np.array(values)
    drawn = extremes(array, first, end, limit).tolist()
    size = bucket_size(end - first, limit)
    assert drawn == sorted(set(drawn))
    assert all(math.isfinite(values[index]) for index in drawn)
    assert len(drawn) <= 2 * (limit + 1)
    for begin in range(first // size * size, end, size):
        bucket = [value for value in values[begin : begin + size] if math.isfinite(value)]
        kept = [values[index] for index in drawn if begin <= index < begin + size]
        assert (min(bucket, default=None), max(bucket, default=None)) == (
            min(kept, default=None),
            max(kept, default=None),
        )
    if size == 1:
        assert drawn == [index for index in range(first, end) if math.isfinite(values[index])]


@given(values=VALUES, more=VALUES)
def test_what_is_drawn_of_complete_buckets_stays_while_a_run_grows(values, more):
    size = bucket_size(len(values) + len(more), 8)
    if size == bucket_size(len(values), 8):
        complete = len(values) // size * size
        before, after = (extremes(np.array(v), 0, len(v), 8) for v in (values, values + more))
        assert before[before < complete].tolist() == after[after < complete].tolist()


@given(
    steps=st.lists(st.integers(0, 100), unique=True, min_size=1),
    low=st.none() | st.integers(-5, 105),
    span=st.none() | st.integers(0, 50),
)
def test_what_is_in_view_comes_with_one_neighbour_on_each_side(steps, low, span):
    x = sorted(steps)
    high = None if span is None else (low or 0) + span
    first, end = in_view(np.array(x), low, high)
    inside = [i for i, at in enumerate(x) if (low is None or at >= low) and (high is None or at <= high)]
    assert (
        set(inside)
        <= set(range(first, end))
        <= {i + d for i in inside for d in (-1, 0, 1)} | {first, end - 1}
    )


@given(places=st.lists(st.floats(0, 100)), limit=st.integers(1, 20))
def test_marks_are_thinned_but_none_stands_alone_unseen(places, limit):
    array = np.sort(places)
    kept = array[one_per_bucket(array, 10, 90, limit)]
    assert kept.size <= limit + 1
    for place in array[(array >= 10) & (array <= 90)]:
        assert np.abs(kept - place).min() <= 80 / limit


def test_a_million_steps_keep_their_one_spike():
    values = np.random.default_rng(0).normal(2, 0.1, 1_000_000)
    values[123_457] = 50
    values[77] = math.nan
    drawn = extremes(values, 0, values.size, 700)
    assert drawn.size <= 1402
    assert 123_457 in drawn
    assert values[drawn].min() == np.nanmin(values)
    assert largest_spike(values) == 123_457


def test_a_spike_is_found_where_there_is_one():
    assert largest_spike(np.full(3, math.nan)) == -1
    assert largest_spike(np.array([3.0])) == 0
    falling = np.linspace(9, 2, 40)
    falling[25] += 1
    falling[30] = math.nan
    assert largest_spike(falling) == 25


def test_hours_are_those_of_the_interval_that_a_step_lies_in():
    seconds = np.array([36.0, math.nan, math.nan, 72.0, math.nan])
    assert hours_of(seconds).tolist() == pytest.approx([0.01, 0.03, 0.05, 0.07, 0.09])
    assert hours_of(np.full(2, math.nan)).tolist() == [0, 0]
