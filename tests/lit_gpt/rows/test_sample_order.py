"""The order of samples: permutations, mixtures and their inverses."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.cli import InputError
from lit_gpt.rows.mixture import BLOCK
from lit_gpt.rows.sample_order import OrderStart, RowAddresses, SampleOrder
from tests.lit_gpt import scalar_order

ROWS = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)
SETTINGS = {"seed": st.integers(-5, 2**64), "shuffle_window": st.integers(1, 5), "shuffle": st.booleans()}


@st.composite
def orders(draw, max_stores: int = 3, started: bool = False) -> tuple[SampleOrder, list[np.ndarray]]:
    rows = [np.array(shards) for shards in draw(st.lists(ROWS, min_size=1, max_size=max_stores))]
    weight = st.floats(0.1, 100)
    weights = draw(st.none() | st.lists(weight, min_size=len(rows), max_size=len(rows)))
    settings = {name: draw(strategy) for name, strategy in SETTINGS.items()}
    numbers, position = draw(st.permutations(range(max_stores))), st.integers(0, 10**5)
    starts = st.builds(
        OrderStart, position, st.just(tuple(numbers[: len(rows)])), st.tuples(*[position] * len(rows))
    )
    return SampleOrder(rows, weights, **settings, start=draw(starts) if started else None), rows


@given(orders() | orders(started=True), st.lists(st.integers(0, 10**5), max_size=15))
def test_sample_to_row_to_sample(case, samples):
    order, rows = case
    samples = [order.start.first_sample + sample for sample in samples]
    addresses = order.locate(np.array(samples, dtype=np.int64))
    assert order.inverse(addresses).tolist() == samples
    for sample, store, epoch, shard, row in zip(samples, *map(np.ndarray.tolist, addresses), strict=True):
        assert 0 <= row < rows[store][shard]
        one = order.locate(np.array([sample]))
        assert [int(part[0]) for part in one] == [store, epoch, shard, row]


@given(ROWS, st.integers(0, 2**64), st.integers(1, 5), st.lists(st.integers(0, 500), min_size=1))
def test_one_store_is_as_specified(rows, seed, window, samples):
    located = SampleOrder([np.array(rows)], None, seed, window).locate(np.array(samples))
    expected = [scalar_order.locate_in_store(sample, 0, rows, seed, window) for sample in samples]
    assert list(zip(*map(np.ndarray.tolist, located[1:]), strict=True)) == expected


def test_a_mixture_is_as_specified():
    rows, counts, seed = [[3, 5, 2], [4, 4]], [2500, 7500], 1337
    samples = [0, 1, 2, 3, 4, 9_998, 9_999, 10_000, 123_456]
    located = SampleOrder([np.array(shards) for shards in rows], [1, 3], seed, 2).locate(np.array(samples))
    expected = []
    for sample in samples:
        store, position = scalar_order.deal(sample, counts, seed)
        expected.append((store, *scalar_order.locate_in_store(position, store, rows[store], seed, 2)))
    assert list(zip(*map(np.ndarray.tolist, located), strict=True)) == expected


def test_the_examples_of_the_specification():
    """A change here breaks the resumption of every run begun before."""
    alone = SampleOrder([np.array([3, 5, 2])], None, 1337, 2).locate(np.arange(12))
    assert alone.epoch.tolist() == [0] * 10 + [1] * 2
    assert alone.shard.tolist() == [2, 0, 0, 2, 0, 1, 1, 1, 1, 1, 0, 2]
    assert alone.row.tolist() == [1, 1, 0, 0, 2, 3, 1, 4, 2, 0, 2, 0]
    mixed = SampleOrder([np.array([3, 5, 2]), np.array([4, 4])], [1, 3], 1337, 2).locate(np.arange(8))
    assert mixed.store.tolist() == [1, 1, 1, 1, 1, 1, 1, 0]
    assert mixed.shard.tolist() == [0, 0, 1, 0, 0, 1, 1, 2]
    assert mixed.row.tolist() == [2, 0, 3, 1, 3, 1, 2, 1]


@given(orders(max_stores=1), st.integers(0, 3))
def test_each_row_once_an_epoch(case, epoch):
    order, (rows,) = case
    size = order.rows_per_epoch(0)
    addresses = order.locate(np.arange(epoch * size, (epoch + 1) * size))
    assert set(addresses.epoch.tolist()) == {epoch}
    seen = sorted(zip(addresses.shard.tolist(), addresses.row.tolist(), strict=True))
    assert seen == [(shard, row) for shard, count in enumerate(rows) for row in range(count)]


def test_mixture_has_its_shares_in_every_block_and_epochs_in_order():
    rows = [np.array([700, 0, 150]), np.array([4000] * 3), np.array([90])]
    order = SampleOrder(rows, [1, 2.5, 0.5], seed=3, shuffle_window=2)
    addresses = order.locate(np.arange(5 * BLOCK))
    patterns = addresses.store.reshape(5, BLOCK)
    for pattern in patterns:
        assert np.bincount(pattern).tolist() == [2500, 6250, 1250]
        assert 550 < np.count_nonzero(pattern[:1000] == 1) < 700  # mixed, not one store after the other
    assert np.unique(patterns, axis=0).shape == patterns.shape
    for store, shards in enumerate(rows):
        alone = SampleOrder([shards], None, seed=3, shuffle_window=2)
        epoch, shard, row = (part[addresses.store == store] for part in addresses[1:])
        assert np.array_equal(epoch, np.arange(epoch.size) // alone.rows_per_epoch(0))
        assert np.unique(np.stack([epoch, shard, row]), axis=1).shape[1] == epoch.size
        if store == 0:  # its place in the list is part of the keys
            expected = alone.locate(np.arange(epoch.size))
            assert np.array_equal(np.stack([epoch, shard, row]), np.stack(expected[1:]))


STAGES = [  # samples, the stores' numbers in the plan, weights
    [(14_321, (0, 1), [3, 1]), (10_007, (1, 0), [1, 1])],
    [(12_345, (0,), None), (25_000, (1, 0, 2), [1, 2.5, 0.5]), (8_000, (2, 0), None)],
]


@pytest.mark.parametrize("stages", STAGES)
def test_stages_continue_each_store_where_it_stood(stages):
    """By counting: no row of a store comes again before an epoch of it ends, whatever the stages."""
    rows = [np.array([700, 0, 150]), np.array([4000, 3000, 5000]), np.array([90])]
    sequences, first_sample = [[], [], []], 0
    for n_samples, numbers, weights in stages:
        positions = tuple(len(sequences[number]) for number in numbers)
        start = OrderStart(first_sample, numbers, positions)
        order = SampleOrder([rows[number] for number in numbers], weights, 3, 2, start=start)
        samples = np.arange(first_sample, first_sample + n_samples)
        addresses = order.locate(samples)
        assert np.array_equal(order.inverse(addresses), samples)
        for passed in (0, 1, 7_777, n_samples):
            counts = np.bincount(addresses.store[:passed], minlength=len(numbers))
            assert order.positions_after(first_sample + passed) == tuple(np.add(positions, counts).tolist())
        for store, *row in zip(*map(np.ndarray.tolist, addresses), strict=True):
            sequences[numbers[store]].append(tuple(row))
        first_sample += n_samples
    for number, sequence in enumerate(sequences):
        size = rows[number].sum()
        assert [epoch for epoch, _, _ in sequence] == [place // size for place in range(len(sequence))]
        assert len(set(sequence)) == len(sequence)
        for q in range(0, len(sequence), 1999):
            assert sequence[q] == scalar_order.locate_in_store(q, number, rows[number].tolist(), 3, 2)


def test_rows_dealt_before_a_stage_have_no_sample_in_it():
    rows, first_sample = [np.array([5, 7])], 1000
    order = SampleOrder(rows, None, 3, 2, start=OrderStart(first_sample, (0,), (30,)))
    whole = SampleOrder(rows, None, 3, 2)
    assert order.inverse(whole.locate(np.arange(30))).tolist() == [-1] * 30
    assert order.inverse(whole.locate(np.arange(30, 90))).tolist() == list(range(1000, 1060))


def test_one_window_is_read_at_a_time():
    order = SampleOrder([np.full(20, 50)], None, seed=1, shuffle_window=4)
    shards = order.locate(np.arange(1000)).shard
    windows = [set(shards[begin : begin + 200].tolist()) for begin in range(0, 1000, 200)]
    assert all(len(window) == 4 for window in windows)
    assert len(set.union(*windows)) == 20
    for sample, window in ((0, 0), (199, 0), (200, 1), (799, 3)):
        ahead = [shard for _, shard in order.shards_ahead(sample)]
        assert (set(ahead[:4]), set(ahead[4:])) == (windows[window], windows[window + 1])
    next_epoch = set(order.locate(np.arange(1000, 1200)).shard.tolist())
    ahead = [shard for _, shard in order.shards_ahead(900)]
    assert (set(ahead[:4]), set(ahead)) == (windows[4], windows[4] | next_epoch)


def test_shards_ahead_of_a_mixture_are_those_it_reads():
    rows = [np.full(40, 3000), np.full(30, 1500)]
    start = OrderStart(77_777, (2, 0), (7_000, 43_210))
    for begin, sample in itertools.product((None, start), (0, 45_000, 123_456)):
        order = SampleOrder(rows, [3, 1], seed=1, shuffle_window=3, start=begin)
        ahead = order.shards_ahead(order.start.first_sample + sample)
        block = order.start.first_sample + sample // BLOCK * BLOCK
        addresses = order.locate(np.arange(block, block + BLOCK))
        assert set(zip(addresses.store.tolist(), addresses.shard.tolist(), strict=True)) <= set(ahead)
        assert len(ahead) <= 12


def test_seed_epoch_window_and_store_each_give_another_order():
    rows = np.full(4, 100)
    samples = np.arange(400)

    def sequence(seed: int, epoch: int = 0) -> list[tuple[int, int]]:
        addresses = SampleOrder([rows], None, seed, shuffle_window=2).locate(samples + 400 * epoch)
        return list(zip(addresses.shard.tolist(), addresses.row.tolist(), strict=True))

    sequences = [sequence(0), sequence(1), sequence(0, epoch=1), sequence(0, epoch=2)]
    for number, one in enumerate(sequences):
        for other in sequences[:number]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 40
    both = SampleOrder([rows, rows], None, seed=0, shuffle_window=2).locate(np.arange(BLOCK))
    first, second = (both.row[(both.store == store) & (both.epoch == 0)] for store in (0, 1))
    assert first.tolist() != second.tolist()


def test_unshuffled_is_as_stored():
    addresses = SampleOrder([np.array([2, 0, 3])], None, seed=1, shuffle=False).locate(np.arange(10))
    assert addresses.shard.tolist() == [0, 0, 2, 2, 2] * 2
    assert addresses.row.tolist() == [0, 1, 0, 1, 2] * 2
    assert addresses.epoch.tolist() == [0] * 5 + [1] * 5


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=8))
def test_counts_are_the_weights_to_less_than_one(weights):
    order = SampleOrder([np.array([BLOCK])] * len(weights), weights, seed=0)
    counts = np.bincount(order.locate(np.arange(BLOCK)).store, minlength=len(weights))
    assert counts.sum() == BLOCK
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - BLOCK * weight / math.fsum(weights)) < 1 + 1e-9


@pytest.mark.parametrize(
    ("rows", "weights", "window", "message"),
    [
        ([[5], [5]], [1, 1e-6], 8, "small has weight 1e-06"),
        ([[5], [5]], [1, 0], 8, "small has weight 0"),
        ([[5], [5]], [1, math.nan], 8, "small has weight nan"),
        ([[5]], [-1], 8, "big has weight -1"),
        ([[5], [0, 0]], None, 8, "small has no rows"),
        ([[5]], None, 0, "shuffle_window is 0"),
        ([], None, 8, "no token store"),
    ],
)
def test_refusals_name_the_store(rows, weights, window, message):
    names = ["big", "small"][: len(rows)]
    with pytest.raises(InputError, match=message):
        SampleOrder([np.array(shards) for shards in rows], weights, 0, window, names=names)


def test_fewer_rows_than_a_batch_come_again():
    order = SampleOrder([np.array([3])], None, seed=0)
    addresses = order.locate(np.arange(8))
    assert addresses.epoch.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(addresses.row[:3].tolist()) == [0, 1, 2]


def test_a_trillion_tokens_need_no_memory_per_row():
    """5 * 10^8 rows in 1,000 shards, anywhere in a hundred epochs, not a byte a row."""
    program = """
import resource, numpy as np
from lit_gpt.rows.sample_order import SampleOrder
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
order = SampleOrder([np.full(1000, 488_282)], None, seed=1)
samples = np.random.default_rng(0).integers(0, 100 * order.rows_per_epoch(0), 500)
assert np.array_equal(order.inverse(order.locate(samples)), samples)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 50_000  # KiB


def test_addresses_keep_their_shape_when_empty():
    order = SampleOrder([np.array([3]), np.array([2])], None, seed=0)
    addresses = order.locate(np.zeros(0, dtype=np.int64))
    assert [part.shape for part in addresses] == [(0,)] * 4
    assert order.inverse(RowAddresses(*addresses)).shape == (0,)
