"""The permutation against its specification in Python's integers, and against chance."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.rows.feistel import derive_key, permute, unpermute
from tests.lit_gpt import scalar_order


@given(st.integers(1, 2**48), st.integers(-(2**70), 2**70), st.data())
def test_equals_the_scalar_version_and_is_undone(n, seed, data):
    x = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    key = derive_key(3, seed)
    assert key.tolist() == [scalar_order.key(3, seed)]
    y = permute(np.array(x), n, key)
    assert y.tolist() == [scalar_order.permute(value, n, int(key[0])) for value in x]
    assert unpermute(y, n, key).tolist() == x


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_is_a_bijection(n, seed):
    assert np.array_equal(np.sort(permute(np.arange(n), n, derive_key(seed))), np.arange(n))


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**6)), min_size=1, max_size=20))
def test_each_element_has_its_own_domain_and_key(domains):
    n = np.array([n for n, _ in domains])
    parts = np.array([part for _, part in domains])
    x = parts % n
    y = permute(x, n, derive_key(5, parts))
    alone = [permute(x[i : i + 1], int(n[i]), derive_key(5, int(parts[i])))[0] for i in range(len(domains))]
    assert y.tolist() == alone
    assert unpermute(y, n, derive_key(5, parts)).tolist() == x.tolist()


def test_looks_random():
    """Of a million elements: no trace of the order they had, nor of another key's permutation."""
    n = 1_000_003
    first, second = (permute(np.arange(n), n, derive_key(seed)) for seed in (1, 2))
    for one, other in ((first, np.arange(n)), (first[1:], first[:-1]), (first, second)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(n)
        assert np.count_nonzero(one == other) < 10  # expected: 1
    # Where each 64th of the elements goes, in 64 parts: chi-square of 63^2 degrees of freedom.
    cells = np.bincount(np.arange(n) * 64 // n * 64 + first * 64 // n, minlength=64**2)
    chi_square = float(((cells - n / 64**2) ** 2).sum() / (n / 64**2))
    assert abs(chi_square - 63**2) < 5 * math.sqrt(2 * 63**2)


def test_values_of_the_specification():
    assert [int(key[0]) for key in (derive_key(3, 1337, 0, 2, 1),)] == [0x7AE6B0BF411CC361]
    assert permute(np.arange(10), 10, derive_key(1)).tolist() == [9, 5, 8, 2, 1, 7, 0, 4, 6, 3]
